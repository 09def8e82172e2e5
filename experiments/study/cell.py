"""One cell of the study: a method on one data set, criterion, budget and seed."""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import hypergrad as hg

from ..common.cells import Advance, ignore
from ..common.data import Rows, Splits
from .contest import COUNTS, Method, Task, compete, measure
from .criteria import Criterion
from .settings import Setting

NOISES = (0.25, 0.5)  # standard deviation of what is added to the weights
DRAWS = 20  # of that noise
ENOUGH = 0.99  # of the gain


class Draws(NamedTuple):
    """The randomness of one repetition: the seed, the initial model, the folds and the run."""

    seed: int
    model: Array
    folds: Array
    run: Array


def make_task(
    setting: Setting, criterion: Criterion, rows: Splits, draws: Draws, start: PyTree, budget: hg.Budget
) -> Task:
    """Returns the problem of one repetition; `start` holds the initial hyperparameters."""
    train, valid = (jax.tree.map(jnp.asarray, part) for part in criterion.data(rows, draws.folds))
    problem = hg.BilevelProblem(criterion.inner_loss, criterion.outer_loss, train, valid)
    params = criterion.params(draws.model)
    return Task(problem, params, setting.weights, start, setting.prior, criterion, budget, draws.run, draws.seed, rows)


def run_cell(
    setting: Setting, task: Task, method: Method, advance: Advance = ignore
) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
    """Returns the summary of one cell, its history, and the best it found: (trained, hyperparameters) or `None`."""
    start = float(measure(task.criterion.evaluate, task.problem, task.params, task.start))
    tracker, totals = compete(method, task, advance)
    num_rows = len(task.rows.train.y)
    row = {
        "Q": -num_rows * tracker.value,
        "Q_start": -num_rows * start,
        "its": iterations_to_gain(tracker.history, start) / setting.inner_steps,
        **errors(setting, task, tracker.best),
        **totals,
    }
    history = [
        {"Q": -num_rows * line["best"], "Q_now": -num_rows * line["criterion"]}
        | {name: line[name] for name in (*COUNTS, "seconds")}
        for line in tracker.history
    ]
    return row, history, tracker.best


def iterations_to_gain(history: list[dict[str, Any]], start: float) -> float:
    """Returns the updates of the weights until 99 % of what the run gained was gained."""
    best = np.array([line["best"] for line in history])
    gained = start - best >= ENOUGH * (start - best[-1])
    return history[int(np.argmax(gained))]["iterations"]


def errors(setting: Setting, task: Task, best: tuple[PyTree, PyTree] | None) -> dict[str, float | None]:
    """Returns log-likelihood per row, error, and error with noise on the weights of what was found, on the test set.

    Each is the mean over replicas.
    """
    names = ("test_loglik", "E", *(f"E_{noise:g}" for noise in NOISES))
    if best is None:
        return dict.fromkeys(names)
    models, key = task.criterion.models(best[0]), jax.random.key(task.seed)
    measures = [(setting.log_likelihood, 0.0), *((setting.error, noise) for noise in (0.0, *NOISES))]
    return {
        name: float(_error(measure, models, jnp.float32(noise), task.rows.test, key))
        for name, (measure, noise) in zip(names, measures, strict=True)
    }


@eqx.filter_jit
def _error(measure: Any, models: PyTree, noise: Array, test: Rows, key: Array) -> Array:
    def perturbed(key):
        weights, rest = eqx.partition(models, eqx.is_inexact_array)
        leaves, treedef = jax.tree.flatten(weights)
        keys = jax.random.split(key, len(leaves))
        leaves = [w + noise * jax.random.normal(k, w.shape, w.dtype) for k, w in zip(keys, leaves, strict=True)]
        shaken = eqx.combine(jax.tree.unflatten(treedef, leaves), rest)
        return jnp.mean(eqx.filter_vmap(lambda model: measure(model, test))(shaken))

    return jnp.mean(jax.lax.map(perturbed, jax.random.split(key, DRAWS)))


def flat(hparams: PyTree) -> np.ndarray:
    """Returns all log-variances as one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(hparams)])


def with_image_noise(task: Task, deviation: float) -> Task:
    """Returns the same task with noise on the training inputs."""
    data = task.problem.train
    noise = deviation * np.random.default_rng(task.seed).normal(size=data.x.shape).astype(np.float32)
    noisy = data._replace(x=data.x + noise)
    problem = hg.BilevelProblem(task.problem.inner_loss, task.problem.outer_loss, noisy, noisy)
    return replace(task, problem=problem)
