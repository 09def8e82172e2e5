"""One cell of the study: a method on one data set, criterion, budget and seed."""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import hypergrad as hg

from ..common.contest import Method, Task, Tracker, measure, uniform
from ..common.data import Rows
from .criteria import Criterion, criterion
from .settings import Setting

NOISES = (0.25, 0.5)  # standard deviation of what is added to the weights
DRAWS = 20  # of that noise
ENOUGH = 0.99  # of the gain
COUNTS = ("iterations", "gradients", "hvps", "hyper_updates")


class Problem(NamedTuple):
    """A data set under a criterion, at one seed."""

    task: Task
    train: Rows
    test: Rows


def make_problem(setting: Setting, name, losses: dict, budget: hg.Budget, seed: int, groups) -> Problem:
    """Draw the rows, the folds, the initial weights and the initial hyperparameters of a seed.

    `losses` keeps the criterion of a size: a criterion built anew compiles anew.
    """
    init_key, fold_key, start_key, run_key = jax.random.split(jax.random.key(seed), 4)
    train, test = setting.sample(seed)
    size = len(train.y)
    made: Criterion = losses.setdefault((name, size), criterion(name, setting, size))
    weights = eqx.filter(setting.model(init_key), eqx.is_inexact_array)
    start = uniform(groups(weights), setting.prior)(start_key)
    data = jax.tree.map(jnp.asarray, made.data(train, fold_key))
    problem = hg.BilevelProblem(made.inner_loss, made.outer_loss, data, data)
    task = Task(problem, made.params(init_key), weights, start, setting.prior, made, budget, run_key, seed)
    return Problem(task, train, test)


def run_cell(setting: Setting, problem: Problem, method: Method, advance) -> tuple[dict[str, Any], list[dict], Any]:
    """The summary of one cell, its history, and the best it found: (trained, hyperparameters) or `None`."""
    task = problem.task
    start = float(measure(task.criterion.evaluate, task.problem, task.params, task.start))
    tracker = Tracker(task, advance)
    method(task, tracker)
    seconds = tracker.seconds
    advance(1 - tracker.share)
    rows = len(problem.train.y)
    last = tracker.history[-1]
    row = {
        "Q": -rows * tracker.value,
        "Q_start": -rows * start,
        "its": iterations_to_gain(tracker.history, start) / setting.inner_steps,
        **errors(setting, task, tracker.best, problem.test),
        **{name: last[name] for name in COUNTS},
        "seconds": round(seconds, 2),
        "status": tracker.status.name or "OK",
    }
    history = [
        {"Q": -rows * line["best"], "Q_now": -rows * line["criterion"]}
        | {name: line[name] for name in (*COUNTS, "seconds")}
        for line in tracker.history
    ]
    return row, history, tracker.best


def iterations_to_gain(history: list[dict], start: float) -> float:
    """Updates of the weights until 99 % of what the run gained was gained."""
    best = np.array([line["best"] for line in history])
    gained = start - best >= ENOUGH * (start - best[-1])
    return history[int(np.argmax(gained))]["iterations"]


def errors(setting: Setting, task: Task, best, test: Rows) -> dict[str, float | None]:
    """What was found, on the test set: log-likelihood per row, error, error with noise on the weights; each the mean
    over members."""
    names = ("test_loglik", "E", *(f"E_{noise:g}" for noise in NOISES))
    if best is None:
        return dict.fromkeys(names)
    models, key = task.criterion.models(best[0]), jax.random.key(task.seed)
    measures = [(setting.log_likelihood, 0.0), *((setting.error, noise) for noise in (0.0, *NOISES))]
    return {
        name: float(_error(measure, models, jnp.float32(noise), test, key))
        for name, (measure, noise) in zip(names, measures, strict=True)
    }


@eqx.filter_jit
def _error(measure, models, noise: Array, test: Rows, key: Array) -> Array:
    def perturbed(key):
        weights, rest = eqx.partition(models, eqx.is_inexact_array)
        leaves, treedef = jax.tree.flatten(weights)
        keys = jax.random.split(key, len(leaves))
        leaves = [w + noise * jax.random.normal(k, w.shape, w.dtype) for k, w in zip(keys, leaves, strict=True)]
        shaken = eqx.combine(jax.tree.unflatten(treedef, leaves), rest)
        return jnp.mean(eqx.filter_vmap(lambda model: measure(model, test))(shaken))

    return jnp.mean(jax.lax.map(perturbed, jax.random.split(key, DRAWS)))


def with_image_noise(problem: Problem, deviation: float, seed: int) -> Problem:
    """The same problem with noise on the training inputs."""
    noise = deviation * np.random.default_rng(seed).normal(size=problem.train.x.shape).astype(np.float32)
    data = problem.task.problem.train._replace(x=problem.task.problem.train.x + noise)
    task = replace(problem.task, problem=replace_data(problem.task.problem, data))
    return problem._replace(task=task, train=problem.train._replace(x=problem.train.x + noise))


def replace_data(problem: hg.BilevelProblem, data) -> hg.BilevelProblem:
    """The same losses on other data."""
    return hg.BilevelProblem(problem.inner_loss, problem.outer_loss, data, data)
