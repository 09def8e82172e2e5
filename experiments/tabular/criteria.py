"""Criteria of a search: the loss on validation rows, and three on the training rows alone."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg
from ensembles import MeanField, cross_validation, negative_elbo

from .model import Decays, Losses
from .task import Task

FOLDS = 4
NOISE = 0.5  # variance of the targets to begin with: then the bound weighs fit and penalty as the loss does


def whole(params: PyTree) -> PyTree:
    """Returns the model: what is trained predicts."""
    return params


class Posed(NamedTuple):
    """A problem with its start.

    - `holdout`: what chooses the best step in place of the outer loss, see `hg.run`.
    - `predictor`: a function from what is trained to the model that predicts.
    - `networks`: how many are trained at a time, each at its price.
    """

    problem: hg.BilevelProblem
    params: PyTree
    hparams: PyTree
    holdout: Any = None
    predictor: Callable[[PyTree], Any] = whole
    networks: int = 1


Pose = Callable[[Task], Posed]


def on_validation(decays: Decays = "layer", guarded: bool = False) -> Pose:
    """Returns the problem on validation rows, half of which only choose the best step where it is guarded."""

    def pose(task: Task) -> Posed:
        valid, half = task.table.splits.valid, len(task.table.splits.valid.y) // 2
        holdout = valid.take(np.arange(half, len(valid.y))) if guarded else None
        problem = task.problem(valid.take(np.arange(half)) if guarded else valid)
        return Posed(problem, task.model, task.hparams(decays), holdout)

    return pose


class Judge(eqx.Module):
    """The loss on the validation rows of the model that predicts."""

    loss: hg.problem.Loss
    rows: Any
    predictor: Callable[[PyTree], Any]

    def __call__(self, params: PyTree) -> Array:
        """Returns the mean loss."""
        return self.loss(self.predictor(params), None, self.rows, jax.random.key(0))


def judge(task: Task, predictor: Callable[[PyTree], Any] = whole) -> Judge:
    """Returns the validation rows as what chooses the best step."""
    return Judge(task.losses.outer, jax.tree.map(jnp.asarray, task.table.splits.valid), predictor)


def training_loss(task: Task) -> Posed:
    """Returns the loss of the training rows, without penalties, in place of that of the validation rows."""
    train = task.table.splits.train
    return Posed(hg.BilevelProblem(*task.losses, train, train), task.model, task.hparams(), judge(task))


class Mean(eqx.Module):
    """Several networks as one, with the mean of their outputs."""

    models: eqx.nn.MLP

    def __call__(self, x: Array) -> Array:
        """Returns the mean output."""
        return jnp.mean(eqx.filter_vmap(lambda model: model(x))(self.models), 0)


def folds(task: Task) -> Posed:
    """Returns cross-validation on the training rows, whose networks predict together."""
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * FOLDS) if eqx.is_array(leaf) else leaf, task.model)
    problem = hg.BilevelProblem(*cross_validation(*task.losses, task.table.splits.train, FOLDS, task.key))
    return Posed(problem, params, task.hparams(), judge(task, Mean), Mean, FOLDS)


def evidence_bound(task: Task) -> Posed:
    """Returns minus the evidence bound of the training rows as both losses; the means of the weights predict.

    The noise of a regression is one more hyperparameter.
    """
    losses, train = bounds_of(task.table.classes, task.batch), task.table.splits.train
    noise = {} if task.table.classes else {"log_noise": jnp.float32(math.log(NOISE))}
    problem = hg.BilevelProblem(*losses, train, train)
    return Posed(problem, MeanField(task.model), task.hparams() | noise, judge(task, mean_of), mean_of)


def mean_of(posterior: MeanField) -> Any:
    """Returns the network with the means of the weights."""
    return posterior.mean


@functools.cache  # one function per kind: compiled once
def bounds_of(classes: int, batch: int) -> Losses:
    """Returns minus the evidence bound per row, of a batch and of all rows.

    The prior variance of a layer is 1/n times one over its decay, with n rows.
    """

    def log_likelihood(model: eqx.nn.MLP, hparams: PyTree, x: Array, y: Array) -> Array:
        found = jax.vmap(model)(x)
        if classes:
            return -optax.softmax_cross_entropy_with_integer_labels(found, y)
        log_noise = hparams["log_noise"]
        return -((found - y) ** 2 * jnp.exp(-log_noise) + log_noise + math.log(2 * math.pi)) / 2

    def negative(posterior: MeanField, hparams: PyTree, rows: Any, num_rows: int, key: Array) -> Array:
        spread = tuple(-decay - math.log(num_rows) for decay in hparams["log_decay"])
        prior = eqx.tree_at(lambda weights: weights.layers, posterior.weights, spread)
        fit = lambda model: log_likelihood(model, hparams, *rows)
        return negative_elbo(posterior, prior, fit, key, num_rows)

    def inner(posterior, hparams, data, key):
        row_key, weight_key = jax.random.split(key)
        return negative(posterior, hparams, hg.minibatch(row_key, data, batch), len(data.y), weight_key)

    def outer(posterior, hparams, data, key):
        return negative(posterior, hparams, data, len(data.y), key)

    return Losses(inner, outer)
