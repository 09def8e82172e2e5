"""Learn one penalty per weight by reverse mode, against the best single penalty at equal cost."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

import hypergrad as hg

from ..common.config import NonNegativeFloat, OnSplits, Out, Positive, PositiveFloat
from ..common.data import Splits, split
from ..common.report import save, spread_table
from . import model
from .plots import draw

QUICK = {"data": "digits", "num_train": 800, "num_valid": 500, "seeds": 2}
START = float(np.log(0.01) + 1)  # published: log-penalty of every weight before learning
GRID = (-14.0, 0.0)  # range of the single log-penalty


@dataclass(frozen=True)
class Config(OnSplits):
    """Learn one L2 penalty per pixel and class of a softmax regression (7,840 on MNIST) through its training.

    The penalties follow exact hypergradients of the validation loss through all training steps; the best single
    penalty is searched on a grid at the same cost in gradients. The test set is looked at once, at the end.

    After Maclaurin, Duvenaud and Adams (2015), section 4.1. Published settings: 10,000 training and validation images,
    batches of 200, 50 steps of learning rate 1 and momentum 0.9 in the convention v <- 0.9 v - 0.1 g (0.1 in that of
    optax), log-penalties start at log 0.01 + 1, initial weights N(0, exp(-8)), the same for all hyper-steps as are the
    batches; gradient descent with step 1000 for 50 hyper-steps, hyper-prior 0.01. The numbers were not published, only
    the map of penalties. Ours: batches are drawn with replacement, biases are not penalised, inputs are centred.
    """

    data: Literal["digits", "mnist"] = "mnist"
    """digits: 8 x 8, ships with scikit-learn. mnist: 28 x 28, from --data-dir or downloaded."""
    num_train: Positive = 10_000
    """Training rows."""
    num_valid: Positive = 10_000
    """Validation rows."""
    batch: Positive = 200
    """Rows per training step."""
    num_steps: Positive = 50
    """Training steps."""
    hyper_steps: Positive = 50
    """Steps on the penalties."""
    hyper_lr: PositiveFloat = 1000.0
    """Step size of gradient descent on the log-penalties."""
    hyper_prior: NonNegativeFloat = 0.01
    """Weight of the sum of squared penalties in the criterion."""
    out: Out = Path("results/pixel_decay")


@dataclass(frozen=True)
class Tools:
    """What all seeds share, made once."""

    losses: tuple[hg.problem.Loss, hg.problem.Loss]
    search: hg.GradientSearch
    trial: Callable[..., hg.Estimate]
    step: Callable[[], Any]  # tells the progress bar

    @staticmethod
    def make(config: Config, step: Callable[[], Any]) -> "Tools":
        """The same training for the search and for the grid."""
        # Their learning rate multiplies (1 - momentum) times the gradient.
        solver = hg.OptaxSolver(optax.sgd(0.1, 0.9), config.num_steps)
        search = hg.GradientSearch(hg.Reverse(solver), optax.sgd(config.hyper_lr))
        losses = model.losses(config.batch, config.hyper_prior)
        return Tools(losses, search, partial(hg.evaluate, solver), step)


def learn(config: Config, tools: Tools, problem, params, hparams, key) -> tuple[list[dict], Any, Any, hg.Counts]:
    """Hyper-steps with the same batches each time, as published: (validation losses, penalties, weights, work)."""
    state, history = tools.search.init(problem, params, hparams), []
    best = np.inf
    for step in range(config.hyper_steps):
        state, record = tools.search.step(problem, state, key)
        prior = config.hyper_prior * float(jnp.sum(jnp.exp(2 * record.hparams)))
        history.append({"hyper_step": step, "valid_loss": float(record.value) - prior})
        if record.value < best:
            best, chosen, trained = float(record.value), record.hparams, state.best.params
        tools.step()
    return history, chosen, trained, state.spent


def best_single(config: Config, tools: Tools, problem, params, like, key, gradients: int):
    """A grid of single penalties that costs as many gradients; (log-penalty, weights, trials)."""
    count, best = max(2, gradients // config.num_steps), np.inf
    for log_penalty in np.linspace(*GRID, count):
        estimate = tools.trial(problem, params, jnp.full_like(like, log_penalty), key)
        value = float(model.measure(estimate.params, problem.valid)[0])
        if value < best:
            best, chosen, trained = value, float(log_penalty), estimate.params
    tools.step()
    return chosen, trained, count


def one_seed(config: Config, tools: Tools, data: Splits, seed: int) -> tuple[list[dict], list[dict], np.ndarray]:
    """Runs, history and the learned log-penalties."""
    init_key, train_key = jax.random.split(jax.random.key(seed))
    problem = hg.BilevelProblem(*tools.losses, tuple(data.train), tuple(data.valid))
    params = model.initial(data.train.x.shape[1], init_key)
    hparams = jnp.full(params["weight"].shape, START)
    before = tools.trial(problem, params, hparams, train_key)
    history, chosen, trained, spent = learn(config, tools, problem, params, hparams, train_key)
    single, single_trained, trials = best_single(
        config, tools, problem, params, hparams, train_key, int(spent.gradients)
    )
    found = {
        "start": (before.params, config.num_steps, START),
        "best single": (single_trained, trials * config.num_steps, single),
        "learned": (trained, int(spent.gradients), None),
    }
    rises = int(np.sum(np.diff([line["valid_loss"] for line in history]) > 0))
    runs = [
        {"method": name, "seed": seed, "gradients": gradients, "log_penalty": log_penalty}
        | {"rises": rises if name == "learned" else None}
        | measured(weights, problem.valid, data.test)
        for name, (weights, gradients, log_penalty) in found.items()
    ]
    return runs, [{"seed": seed} | line for line in history], np.asarray(chosen)


def measured(params, valid, test) -> dict[str, float]:
    """Validation and test loss and accuracy of trained weights."""
    numbers = (*model.measure(params, valid), *model.measure(params, tuple(test)))
    names = ("valid_loss", "valid_accuracy", "test_loss", "test_accuracy")
    return dict(zip(names, map(float, numbers), strict=True))


def main(config: Config) -> dict[str, Any]:
    """Run, write everything, return the summary."""
    runs, history, maps = [], [], []
    with tqdm(total=config.seeds * (config.hyper_steps + 1), unit=" hyper-steps") as bar:
        tools = Tools.make(config, bar.update)
        for seed in range(config.seeds):
            data = split(config.data, config.data_dir, seed, config.num_train, config.num_valid)
            found = one_seed(config, tools, data, seed)
            runs += found[0]
            history += found[1]
            maps.append(found[2])
    columns = ("valid_loss", "test_loss", "test_accuracy", "gradients", "log_penalty", "rises")
    table = spread_table(runs, ("method",), columns)
    title = (
        f"{config.data}: {maps[0].size} log-penalties, {config.seeds} seeds, mean ± standard deviation; "
        "rises: hyper-steps after which the validation loss was higher (published: falls throughout)"
    )
    summary = save(config, runs, table, history, title)
    draw(config, history, runs, maps)
    return summary
