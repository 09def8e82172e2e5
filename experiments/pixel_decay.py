"""One weight decay per pixel and class, learned through training: `python -m experiments.pixel_decay`.

**Source**: Maclaurin, Duvenaud, Adams (2015), section 4.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg

from .common.cells import Advance, grid, rows, run_cells
from .common.command import command
from .common.config import Digits, NonNegativeFloat, OnSplits, Out, Positive, PositiveFloat, Train, Valid
from .common.data import Rows
from .common.figures import COLOURS, curves, figure
from .common.report import Row, save, spread_table

QUICK = {"data": "digits", "num_train": 800, "num_valid": 500, "seeds": 2}
START = float(np.log(0.01) + 1)  # published: log-penalty of every weight before learning
GRID = (-14.0, 0.0)  # range of the single log-penalty
CLASSES = 10
INIT_SCALE = float(jnp.exp(-4.0))  # published


@dataclass(frozen=True)
class Config(OnSplits):
    """Learn one L2 penalty per pixel and class of a softmax regression (7,840 on MNIST) through its training.

    The penalties follow exact hypergradients of the validation loss through all training steps; the best single
    penalty is searched on a grid at the same cost in gradients. The test set is used once, at the end.

    After Maclaurin, Duvenaud and Adams (2015), section 4.1. Published settings: 10,000 training and validation images,
    batches of 200, 50 steps of learning rate 1 and momentum 0.9 in the convention v <- 0.9 v - 0.1 g (0.1 in that of
    optax), log-penalties start at log 0.01 + 1, initial weights N(0, exp(-8)), the same for all hyper-steps as are the
    batches; gradient descent with step 1000 for 50 hyper-steps, hyper-prior 0.01. The numbers were not published, only
    the map of penalties. Ours: batches are drawn with replacement, biases are not penalised, inputs are centred.
    """

    data: Digits = "mnist"
    num_train: Train = 10_000
    num_valid: Valid = 10_000
    batch: Positive = 200  # Rows per training step.
    num_steps: Positive = 50  # Training steps.
    hyper_steps: Positive = 50  # Steps on the penalties.
    hyper_lr: PositiveFloat = 1000.0  # Step size of gradient descent on the log-penalties.
    hyper_prior: NonNegativeFloat = 0.01  # Weight of the sum of squared penalties in the criterion.
    out: Out = Path("results/pixel_decay")


def initial(num_inputs: int, key: Array) -> PyTree:
    """Draws small Gaussian weights and biases."""
    weight_key, bias_key = jax.random.split(key)
    return {
        "weight": INIT_SCALE * jax.random.normal(weight_key, (num_inputs, CLASSES)),
        "bias": INIT_SCALE * jax.random.normal(bias_key, (CLASSES,)),
    }


def cross_entropy(params: PyTree, rows: PyTree) -> Array:
    """Returns the mean of -log p(y | x)."""
    x, y = rows
    log_probs = jax.nn.log_softmax(x @ params["weight"] + params["bias"])
    return -jnp.mean(jnp.take_along_axis(log_probs, y[:, None], axis=1))


def make_losses(batch: int, hyper_prior: float) -> tuple[hg.problem.Loss, hg.problem.Loss]:
    """Returns L = cross-entropy of a minibatch + Σ exp(h) w², F = validation cross-entropy + hyper_prior Σ exp(2h)."""

    def inner_loss(params, log_penalty, rows, key):
        penalty = jnp.sum(jnp.exp(log_penalty) * params["weight"] ** 2)
        return cross_entropy(params, hg.minibatch(key, rows, batch)) + penalty

    def outer_loss(params, log_penalty, rows, key):
        return cross_entropy(params, rows) + hyper_prior * jnp.sum(jnp.exp(2 * log_penalty))

    return inner_loss, outer_loss


@jax.jit
def measure(params: PyTree, rows: PyTree) -> tuple[Array, Array]:
    """Returns cross-entropy and accuracy."""
    x, y = rows
    return cross_entropy(params, rows), jnp.mean(jnp.argmax(x @ params["weight"] + params["bias"], axis=1) == y)


def learn(
    search: hg.GradientSearch,
    problem: hg.BilevelProblem,
    state: hg.SearchState,
    key: Array,
    steps: int,
    advance: Advance,
) -> tuple[hg.SearchState, list[hg.Record]]:
    """Takes hyper-steps with the same batches each time, as published; returns the last state and what was recorded."""
    found = []
    for _ in range(steps):
        state, record = search.step(problem, state, key)
        found.append(record)
        advance(len(found) / (steps + 1))
    return state, found


def best_single(
    solver: hg.OptaxSolver, problem: hg.BilevelProblem, params: Any, key: Array, trials: int
) -> tuple[float, Any]:
    """Returns the best penalty of a grid of single ones, and the weights trained with it."""
    best, chosen, trained = np.inf, float("nan"), params
    for log_penalty in np.linspace(*GRID, trials):
        estimate = hg.evaluate(solver, problem, params, jnp.full_like(params["weight"], log_penalty), key)
        value = float(measure(estimate.params, problem.valid)[0])
        if value < best:
            best, chosen, trained = value, float(log_penalty), estimate.params
    return chosen, trained


def measured(params: PyTree, valid: PyTree, test: Rows) -> dict[str, float]:
    """Returns validation and test loss and accuracy of trained weights."""
    numbers = (*measure(params, valid), *measure(params, tuple(test)))
    names = ("valid_loss", "valid_accuracy", "test_loss", "test_accuracy")
    return dict(zip(names, map(float, numbers), strict=True))


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    # Their learning rate multiplies (1 - momentum) times the gradient.
    solver = hg.OptaxSolver(optax.sgd(0.1, 0.9), config.num_steps)
    search = hg.GradientSearch(hg.Reverse(solver), optax.sgd(config.hyper_lr))
    losses = make_losses(config.batch, config.hyper_prior)

    def run(advance, seed):
        data = config.splits(seed)
        init_key, train_key = jax.random.split(jax.random.key(seed))
        problem = hg.BilevelProblem(*losses, tuple(data.train), tuple(data.valid))
        params = initial(data.train.x.shape[1], init_key)
        hparams = jnp.full(params["weight"].shape, START)
        before = hg.evaluate(solver, problem, params, hparams, train_key).params
        start = search.init(problem, params, hparams)
        state, records = learn(search, problem, start, train_key, config.hyper_steps, advance)
        gradients = int(state.spent.gradients)
        trials = max(2, gradients // config.num_steps)
        single, single_trained = best_single(solver, problem, params, train_key, trials)
        path = [float(one.value) - config.hyper_prior * float(jnp.sum(jnp.exp(2 * one.hparams))) for one in records]
        rises = int(np.sum(np.diff(path) > 0))
        found = {
            "start": (before, config.num_steps, START, None),
            "best single": (single_trained, trials * config.num_steps, single, None),
            "learned": (state.best.params, gradients, None, rises),
        }
        runs = [
            {"method": name, "gradients": cost, "log_penalty": log_penalty, "rises": rises}
            | measured(weights, problem.valid, data.test)
            for name, (weights, cost, log_penalty, rises) in found.items()
        ]
        history = [{"hyper_step": step, "valid_loss": loss} for step, loss in enumerate(path)]
        return {"runs": runs, "history": history, "log_penalties": state.best.hparams}

    return report(config, run_cells(config, grid(seed=config.seed_range()), run))


def report(config: Config, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, table.md and the plots, and returns the summary."""
    runs, history = rows(cells, "runs"), rows(cells, "history")
    columns = ("valid_loss", "test_loss", "test_accuracy", "gradients", "log_penalty", "rises")
    table = spread_table(runs, ("method",), columns)
    penalties = np.array(cells[0]["log_penalties"])
    title = (
        f"{config.data}: {penalties.size} log-penalties, {config.seeds} seeds, mean ± standard deviation; "
        "rises: hyper-steps after which the validation loss was higher (published: falls throughout)"
    )
    summary = save(config, runs, table, history, title)
    draw(config.out, history, runs, penalties)
    return summary


def draw(out: Path, history: list[Row], runs: list[Row], log_penalties: np.ndarray) -> None:
    """Draws the validation loss of all seeds, and the log-penalties of the first."""
    with figure(out / "validation_loss.png") as ax:
        labelled = [line | {"method": "one penalty per weight, learned"} for line in history]
        curves(ax, labelled, "hyper_step", "valid_loss", "method")
        single = np.median([run["valid_loss"] for run in runs if run["method"] == "best single"])
        ax.axhline(single, color=COLOURS[1], ls=":", label="best single penalty of a grid at equal cost")
        ax.set(xlabel="hyper-steps", ylabel="validation loss")
        ax.legend()
    side = int(np.sqrt(len(log_penalties)))
    low, high = np.percentile(log_penalties, [1, 99])
    with figure(out / "penalties.png", 2, CLASSES // 2, (11, 4.6)) as axes:
        for digit, ax in enumerate(axes.flat):
            image = log_penalties[:, digit].reshape(side, side)
            drawn = ax.imshow(image, vmin=low, vmax=high, cmap="viridis")
            ax.set(title=f"class {digit}", xticks=[], yticks=[])
        ax.figure.colorbar(drawn, ax=axes, label="learned log-penalty", shrink=0.8, extend="both")


if __name__ == "__main__":
    command(main, Config(), "pixel_decay", quick=QUICK)
