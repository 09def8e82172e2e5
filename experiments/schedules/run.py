"""Learn the schedules by reverse mode, against the best constant rate, momentum and scale at equal cost."""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import logit
from tqdm.auto import tqdm

import hypergrad as hg

from ..common.config import OnSplits, Out, Positive, PositiveFloat
from ..common.data import Splits, split
from ..common.report import save, spread_table
from . import model
from .plots import draw

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

    data: Literal["digits", "mnist"] = "mnist"
    """digits: 8 x 8, ships with scikit-learn. mnist: 28 x 28, from --data-dir or downloaded."""
    num_train: Positive = 10_000
    """Training rows."""
    num_valid: Positive = 10_000
    """Validation rows, only reported."""
    batch: Positive = 200
    """Rows per training step."""
    num_steps: Positive = 100
    """Training steps, and entries of every schedule."""
    hyper_steps: Positive = 50
    """Steps on the hyperparameters."""
    hyper_lr: PositiveFloat = 0.04
    """Step size of Adam on the hyperparameters."""
    evaluations: Positive = 10
    """Fresh trainings per method and seed at the end."""
    out: Out = Path("results/schedules")


class Trainer:
    """What all seeds share, made once."""

    def __init__(self, config: Config, step):
        self.losses = model.losses(config.batch)
        self.solver = hg.OptaxSolver(model.scheduled_momentum, config.num_steps)
        self.search = hg.GradientSearch(hg.Reverse(self.solver), optax.adam(config.hyper_lr))
        self.trial = partial(hg.evaluate, self.solver)
        self.step = step  # tells the progress bar


def with_noise(problem: hg.BilevelProblem, key) -> hg.BilevelProblem:
    """The same problem with other initial weights."""
    noise = model.draw(problem.train[0][0].shape[1], key)
    return eqx.tree_at(lambda p: (p.train[1], p.valid[1]), problem, (noise, noise))


def learn(config: Config, trainer: Trainer, problem, hparams, key) -> tuple[list[float], model.Hparams, hg.Counts]:
    """Hyper-steps, each with new initial weights and batches; losses on the way, and the last hyperparameters."""
    displacement = optax.tree.zeros_like(problem.train[1])
    state, values = trainer.search.init(problem, displacement, hparams), []
    for k in range(config.hyper_steps):
        noise_key, train_key = jax.random.split(jax.random.fold_in(key, k))
        state, record = trainer.search.step(with_noise(problem, noise_key), state, train_key)
        values.append(float(record.value))
        trainer.step()
    return values, state.hparams, state.spent


def initialisations(like) -> dict[str, Any]:
    """Log-scales to choose from: the start of the learned ones, and 1/sqrt(inputs) with biases near zero."""
    fan_in = [
        {"weight": -0.5 * np.log(layer["weight"].shape[0]), "bias": -20.0} for layer in like
    ]  # exp(-20) is nothing
    return {"start": jax.tree.map(lambda _: START["log_scale"], like), "1/sqrt(inputs)": fan_in}


def best_constants(config: Config, trainer: Trainer, problem, key, gradients: int) -> tuple[dict[str, Any], int]:
    """A grid of rates, momenta and initialisations that costs as many gradients.

    For each initialisation (loss, hyperparameters, what they are); and the cost.
    """
    like = problem.train[1]
    scales = initialisations(like)
    count = max(2, gradients // config.num_steps // (len(MOMENTA) * len(scales)))
    noise_key, train_key = jax.random.split(key)
    problem, displacement = with_noise(problem, noise_key), optax.tree.zeros_like(like)

    def trial(name, log_rate, momentum):
        hparams = model.constant(like, config.num_steps, log_rate, logit(momentum), scales[name])
        value = float(trainer.trial(problem, displacement, hparams, train_key).value)
        words = {"rate": float(np.exp(log_rate)), "momentum": momentum, "initialisation": name}
        return value if np.isfinite(value) else np.inf, hparams, words

    grid = list(itertools.product(np.linspace(*RATES, count), MOMENTA))
    found = {name: min((trial(name, *point) for point in grid), key=lambda one: one[0]) for name in scales}
    trainer.step()
    return found, len(grid) * len(scales) * config.num_steps


def fresh(config: Config, trainer: Trainer, problem, valid, test, hparams, key) -> dict[str, float]:
    """Losses and accuracy after training with new initial weights and batches, averaged over some of them."""
    found = []
    for i in range(config.evaluations):
        noise_key, train_key = jax.random.split(jax.random.fold_in(key, i))
        renewed = with_noise(problem, noise_key)
        end = trainer.trial(renewed, optax.tree.zeros_like(renewed.train[1]), hparams, train_key)
        layers = model.weights(end.params, hparams, renewed.train[1])
        test_numbers = model.measure(layers, test)
        found.append((float(end.value), float(model.measure(layers, valid)[0]), *map(float, test_numbers)))
    names = ("train_loss", "valid_loss", "test_loss", "test_accuracy")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def one_seed(
    config: Config, trainer: Trainer, data: Splits, seed: int
) -> tuple[list[dict], dict[str, list[float]], Any]:
    """Runs, training losses at each hyper-step, and the learned hyperparameters."""
    draw_key, learn_key, grid_key, fresh_key = jax.random.split(jax.random.key(seed), 4)
    noise = model.draw(data.train.x.shape[1], draw_key)
    sides = (tuple(data.train), noise)
    problem = hg.BilevelProblem(*trainer.losses, sides, sides)
    scales = initialisations(noise)["start"]
    start = model.constant(noise, config.num_steps, START["log_rate"], START["logit_momentum"], scales)
    values, learned, spent = learn(config, trainer, problem, start, learn_key)
    constants, cost = best_constants(config, trainer, problem, grid_key, int(spent.gradients))
    _, constant, words = min(constants.values(), key=lambda one: one[0])
    more_values, improved, more = learn(config, trainer, problem, constant, learn_key)
    found: tuple[tuple[Any, int, dict], ...] = (
        (start, 0, {}),
        (constants["start"][1], cost // 2, constants["start"][2]),
        (constant, cost, words),
        (learned, int(spent.gradients), {}),
        (improved, cost + int(more.gradients), {}),
    )
    runs = []
    for name, (hparams, gradients, chosen) in zip(METHODS, found, strict=True):
        scale = float(jnp.exp(hparams.log_scale[0]["weight"]))
        row = {"method": name, "seed": seed, "gradients": gradients, "first_scale": scale, "rate": None} | chosen
        runs.append(row | fresh(config, trainer, problem, tuple(data.valid), tuple(data.test), hparams, fresh_key))
    return runs, {"learned": values, "learned from best constant": more_values}, jax.tree.map(np.asarray, learned)


def main(config: Config) -> dict[str, Any]:
    """Run, write everything, return the summary."""
    runs, history, learned = [], [], []
    with tqdm(total=config.seeds * (2 * config.hyper_steps + 1), unit=" hyper-steps") as bar:
        trainer = Trainer(config, bar.update)
        for seed in range(config.seeds):
            data = split(config.data, config.data_dir, seed, config.num_train, config.num_valid)
            found, values, hparams = one_seed(config, trainer, data, seed)
            runs += found
            history += [
                {"method": name, "seed": seed, "hyper_step": k, "train_loss": value}
                for name, path in values.items()
                for k, value in enumerate(path)
            ]
            learned.append(hparams)
    columns = ("train_loss", "valid_loss", "test_loss", "test_accuracy", "rate", "first_scale", "gradients")
    table = spread_table(runs, ("method",), columns)
    published = {"rate": PUBLISHED_RATE, "first_scale": f"about {PUBLISHED_SCALE:.4f} (learned)"}
    table.append({"method": "published (MNIST)"} | {c: str(published.get(c, "-")) for c in columns})
    title = (
        f"{config.data}, {config.seeds} seeds, mean ± standard deviation, after training on {config.evaluations} fresh "
        "initial weights; published: Maclaurin et al. (2015), section 4.2, rate by Bayesian optimisation"
    )
    summary = save(config, runs, table, history, title)
    draw(config, history, runs, learned, data.train.x.shape[1])
    return summary
