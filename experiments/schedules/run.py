"""Learn the schedules by reverse mode, against the best constant rate, momentum and scale at equal cost."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from scipy.special import expit, logit

import hypergrad as hg

from ..common.cells import Advance, grid, rows, run_cells
from ..common.config import Digits, OnSplits, Out, Positive, PositiveFloat, Train
from ..common.data import INPUTS, Splits
from ..common.figures import COLOURS, band, curves, figure
from ..common.report import Row, save, spread_table
from . import model
from .model import WIDTHS, Hparams

QUICK = {"data": "digits", "num_train": 800, "num_valid": 400, "seeds": 2, "evaluations": 5}
START = {"log_rate": -1.0, "logit_momentum": 0.0, "log_scale": -3.0}  # published
RATES = (-3.0, 3.0)  # log-range of the grid of constant rates
MOMENTA = (0.5, 0.8, 0.95)
PUBLISHED_RATE, PUBLISHED_SCALE = 2.4, 784**-0.5
METHODS = ("start", "best constant, start scale", "best constant", "learned", "learned from best constant")


@dataclass(frozen=True)
class Config(OnSplits):
    """Learn a learning rate and a momentum for every training step and layer of a network, and its initial scales.

    A tanh network with three hidden layers of 50 units is trained for 100 steps. Weights and biases of its four layers
    are eight groups; each has 100 learning rates, 100 momenta and one initial scale: 1,608 hyperparameters, moved along
    exact hypergradients of the final training loss. The best constant rate, momentum and initialisation are searched on
    a grid at the same cost in gradients (half of it is spent on the initial scale that the learned schedules start
    with, and reported on its own). A second search starts from the best constant; it costs twice as much. Everything is
    then measured on fresh initial weights and batches.

    After Maclaurin, Duvenaud and Adams (2015), section 4.2. Published settings: 10,000 training images of MNIST,
    batches of 200, Adam with step 0.04 for 50 hyper-steps, rates start at exp(-1), momenta at 0.5, scales at exp(-3),
    new initial weights and batches at every hyper-step, training loss as criterion. Published results: schedules as
    plots, a learned scale of the first layer near 1/sqrt(784), and a best fixed rate of 2.4 by Bayesian optimisation.
    """

    data: Digits = "mnist"
    num_train: Train = 10_000
    num_valid: Positive = 10_000  # Validation rows, only reported.
    batch: Positive = 200  # Rows per training step.
    num_steps: Positive = 100  # Training steps, and entries of every schedule.
    hyper_steps: Positive = 50  # Steps on the hyperparameters.
    hyper_lr: PositiveFloat = 0.04  # Step size of Adam on the hyperparameters.
    evaluations: Positive = 10  # Fresh trainings per method and seed at the end.
    out: Out = Path("results/schedules")


class Trainer(NamedTuple):
    """The training that all seeds share, made once."""

    solver: hg.OptaxSolver
    search: hg.GradientSearch

    def train(self, problem: hg.BilevelProblem, hparams: model.Hparams, key: Array) -> tuple[hg.Estimate, Any]:
        """Trains with new initial weights and batches; returns the estimate, and the trained layers."""
        noise_key, train_key = jax.random.split(key)
        problem = with_noise(problem, noise_key)
        end = hg.evaluate(self.solver, problem, optax.tree.zeros_like(problem.train[1]), hparams, train_key)
        return end, model.weights(end.params, hparams, problem.train[1])


def with_noise(problem: hg.BilevelProblem, key: Array) -> hg.BilevelProblem:
    """Returns the same problem with other initial weights."""
    noise = model.draw(problem.train[0][0].shape[1], key)
    return eqx.tree_at(lambda p: (p.train[1], p.valid[1]), problem, (noise, noise))


def learn(
    search: hg.GradientSearch,
    problem: hg.BilevelProblem,
    hparams: model.Hparams,
    key: Array,
    steps: int,
    advance: Advance,
) -> tuple[list[float], hg.SearchState]:
    """Takes hyper-steps, each with new initial weights and batches; returns losses on the way, and the last state."""
    state, values = search.init(problem, optax.tree.zeros_like(problem.train[1]), hparams), []
    for k in range(steps):
        noise_key, train_key = jax.random.split(jax.random.fold_in(key, k))
        state, record = search.step(with_noise(problem, noise_key), state, train_key)
        values.append(float(record.value))
        advance(len(values) / steps)
    return values, state


def initialisations(like: PyTree) -> dict[str, Any]:
    """Returns log-scales to choose from: the start of the learned ones, and 1/sqrt(inputs) with biases near zero."""
    fan_in = [
        {"weight": -0.5 * np.log(layer["weight"].shape[0]), "bias": -20.0} for layer in like
    ]  # exp(-20) is nothing
    return {"start": jax.tree.map(lambda _: START["log_scale"], like), "1/sqrt(inputs)": fan_in}


class Constant(NamedTuple):
    """Constant hyperparameters of a grid, in words as well, and the loss that they lead to."""

    loss: float
    hparams: model.Hparams
    words: dict[str, Any]


def best_constants(
    trainer: Trainer, problem: hg.BilevelProblem, key: Array, gradients: int
) -> tuple[dict[str, Constant], int]:
    """Tries a grid of rates, momenta and initialisations that costs as many gradients.

    Returns the best for every initialisation, and the cost.
    """
    like, num_steps = problem.train[1], trainer.solver.num_steps
    scales = initialisations(like)
    count = max(2, gradients // num_steps // (len(MOMENTA) * len(scales)))

    def trial(name, log_rate, momentum):
        hparams = model.constant(like, num_steps, log_rate, logit(momentum), scales[name])
        value = float(trainer.train(problem, hparams, key)[0].value)
        words = {"rate": float(np.exp(log_rate)), "momentum": momentum, "initialisation": name}
        return Constant(value if np.isfinite(value) else np.inf, hparams, words)

    points = list(itertools.product(np.linspace(*RATES, count), MOMENTA))
    found = {name: min((trial(name, *point) for point in points), key=lambda one: one.loss) for name in scales}
    return found, len(points) * len(scales) * num_steps


def fresh(
    trainer: Trainer, problem: hg.BilevelProblem, data: Splits, hparams: Hparams, keys: Sequence[Array]
) -> dict[str, float]:
    """Returns mean losses and accuracy after training with new initial weights and batches, one for every key."""
    found = []
    for key in keys:
        end, layers = trainer.train(problem, hparams, key)
        test_numbers = model.measure(layers, tuple(data.test))
        found.append((float(end.value), float(model.measure(layers, tuple(data.valid))[0]), *map(float, test_numbers)))
    names = ("train_loss", "valid_loss", "test_loss", "test_accuracy")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    losses, solver = model.losses(config.batch), hg.OptaxSolver(model.scheduled_momentum, config.num_steps)
    trainer = Trainer(solver, hg.GradientSearch(hg.Reverse(solver), optax.adam(config.hyper_lr)))

    def run(advance, seed):
        data = config.splits(seed)
        draw_key, learn_key, grid_key, fresh_key = jax.random.split(jax.random.key(seed), 4)
        noise = model.draw(data.train.x.shape[1], draw_key)
        sides = (tuple(data.train), noise)
        problem, steps = hg.BilevelProblem(*losses, sides, sides), config.hyper_steps
        scales = initialisations(noise)["start"]
        start = model.constant(noise, config.num_steps, START["log_rate"], START["logit_momentum"], scales)
        values, learned = learn(trainer.search, problem, start, learn_key, steps, lambda share: advance(share / 2))
        gradients = int(learned.spent.gradients)
        constants, cost = best_constants(trainer, problem, grid_key, gradients)
        best = min(constants.values(), key=lambda one: one.loss)
        second = lambda share: advance((1 + share) / 2)
        more_values, improved = learn(trainer.search, problem, best.hparams, learn_key, steps, second)
        found: tuple[tuple[Any, int, dict[str, Any]], ...] = (
            (start, 0, {}),
            (constants["start"].hparams, cost // 2, constants["start"].words),
            (best.hparams, cost, best.words),
            (learned.hparams, gradients, {}),
            (improved.hparams, cost + int(improved.spent.gradients), {}),
        )
        keys, runs = [jax.random.fold_in(fresh_key, i) for i in range(config.evaluations)], []
        for name, (hparams, spent, words) in zip(METHODS, found, strict=True):
            scale = float(jnp.exp(hparams.log_scale[0]["weight"]))
            row = {"method": name, "gradients": spent, "first_scale": scale, "rate": None} | words
            runs.append(row | fresh(trainer, problem, data, hparams, keys))
        courses = {"learned": values, "learned from best constant": more_values}
        history = [
            {"method": name, "hyper_step": k, "train_loss": value}
            for name, course in courses.items()
            for k, value in enumerate(course)
        ]
        return {"runs": runs, "history": history, "learned": learned.hparams._asdict()}

    return report(config, run_cells(config, grid(seed=config.seed_range()), run))


def report(config: Config, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, table.md and the plots, and returns the summary."""
    runs, history = rows(cells, "runs"), rows(cells, "history")
    columns = ("train_loss", "valid_loss", "test_loss", "test_accuracy", "rate", "first_scale", "gradients")
    table = spread_table(runs, ("method",), columns)
    published = {"rate": PUBLISHED_RATE, "first_scale": f"about {PUBLISHED_SCALE:.4f} (learned)"}
    table.append({"method": "published (MNIST)"} | {c: str(published.get(c, "-")) for c in columns})
    title = (
        f"{config.data}, {config.seeds} seeds, mean ± standard deviation, after training on {config.evaluations} fresh "
        "initial weights; published: Maclaurin et al. (2015), section 4.2, rate by Bayesian optimisation"
    )
    summary = save(config, runs, table, history, title)
    draw(config.out, history, runs, [model.Hparams(**cell["learned"]) for cell in cells], INPUTS[config.data])
    return summary


def draw(out: Path, history: list[Row], runs: list[Row], learned: list[Hparams], num_inputs: int) -> None:
    """Draws the schedules that each seed learned, the training loss, and the initial scales."""
    with figure(out / "schedules.png", 2, 2, (11, 7), sharex=True) as axes:
        for column, group in enumerate(("weight", "bias")):
            for layer in range(len(WIDTHS)):
                rates = np.exp([hparams.log_rate[layer][group] for hparams in learned])
                momenta = expit([hparams.logit_momentum[layer][group] for hparams in learned])
                for ax, lines in zip(axes[:, column], (rates, momenta), strict=True):
                    band(ax, np.arange(1, lines.shape[1] + 1), lines, f"layer {layer + 1}", COLOURS[layer])
            axes[0, column].set(title="weights" if group == "weight" else "biases", ylabel="learning rate")
            axes[1, column].set(xlabel="training step", ylabel="momentum", ylim=(0, 1))
        axes[0, 0].legend()
        for ax in axes.flat:
            ax.grid(alpha=0.3)
    with figure(out / "training_loss.png") as ax:
        curves(ax, history, "hyper_step", "train_loss", "method")
        for name, style in (("best constant", ":"), ("best constant, start scale", "-.")):
            constant = np.median([run["train_loss"] for run in runs if run["method"] == name])
            ax.axhline(constant, color=COLOURS[2], ls=style, label=name)
        ax.set(xlabel="hyper-steps", ylabel="final training loss", yscale="log")
        ax.grid(alpha=0.3, which="both")
        ax.legend()
    with figure(out / "initial_scales.png", size=(6, 4)) as ax:
        layers = np.arange(1, len(WIDTHS) + 1)
        for group, colour in (("weight", COLOURS[0]), ("bias", COLOURS[1])):
            scales = np.exp([[layer[group] for layer in hparams.log_scale] for hparams in learned])
            low, middle, high = scales.min(0), np.median(scales, 0), scales.max(0)
            errors, label = (middle - low, high - middle), "weights" if group == "weight" else "biases"
            ax.errorbar(layers, middle, errors, fmt="o", capsize=3, color=colour, label=f"{label}, learned")
        rows = [num_inputs, *WIDTHS[:-1]]
        ax.plot(layers, np.power(rows, -0.5), "k_", ms=18, label="1/sqrt(inputs)")
        ax.axhline(np.exp(-3), color="gray", ls=":", label="start")
        ax.set(xlabel="layer", ylabel="initial scale", xticks=layers, yscale="log")
        ax.legend(fontsize=8)
