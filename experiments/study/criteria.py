"""The two criteria as losses: evidence bound and k-fold cross-validation, both with one prior variance per weight."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

import hypergrad as hg
from ensembles import MeanField, init_replicas, kfold_masks, negative_elbo, replicate_loss

from ..common.data import Rows
from .settings import Setting

CriterionName = Literal["cv", "elbo"]
FOLDS = 4
SAMPLES = 16  # of the posterior, where the criterion is measured
EVERYTHING = 10**9


class Criterion(NamedTuple):
    """What is trained and what is optimised: minus the published Q, per row.

    `hparams` is the log-variance h of a Gaussian prior N(0, exp(h)), one per weight or what broadcasts to that.
    """

    params: Callable[[Array], PyTree]  # key -> what is trained
    data: Callable[[Rows, Array], PyTree]  # (rows, key) -> what both losses see
    inner_loss: hg.problem.Loss
    outer_loss: hg.problem.Loss
    evaluate: hg.problem.Loss  # the criterion, measured accurately
    models: Callable[[PyTree], PyTree]  # what was trained -> stacked models


def some(key: Array, rows: PyTree, size: int) -> PyTree:
    """All rows if there are no more than `size`, else a random `size` of them."""
    return rows if len(rows[1]) <= size else hg.minibatch(key, rows, size)


def criterion(name: CriterionName, setting: Setting, num_rows: int) -> Criterion:
    """The criterion by its name."""
    return (elbo if name == "elbo" else cross_validation)(setting, num_rows)


def in_training_units(setting: Setting, hparams: PyTree) -> PyTree:
    """Log-variances of the weights as they are trained."""
    return jax.tree.map(lambda h: h + setting.offset, hparams)


def elbo(setting: Setting, num_rows: int) -> Criterion:
    """Q = Σ log p(y | x, w) - KL(q || p), w ~ q: the same loss and the same rows for both levels."""

    def loss(size: int, num_samples: int):
        def negative(posterior, hparams, rows, key):
            row_key, weight_key = jax.random.split(key)
            chosen, prior = some(row_key, rows, size), in_training_units(setting, hparams)
            likelihood = lambda model: setting.log_likelihood(model, chosen)
            return negative_elbo(posterior, prior, likelihood, weight_key, num_rows, num_samples)

        return negative

    expected = setting.expected

    def in_closed_form(posterior, hparams, rows, key):
        assert expected is not None
        likelihood = lambda _: expected(posterior, rows)
        return negative_elbo(posterior, in_training_units(setting, hparams), likelihood, key, num_rows)

    return Criterion(
        params=lambda key: MeanField(setting.model(key)),
        data=lambda rows, key: rows,
        inner_loss=loss(setting.batch, 1),
        outer_loss=loss(setting.outer_batch, 1),
        evaluate=loss(EVERYTHING, SAMPLES) if expected is None else in_closed_form,
        models=lambda posterior: jax.tree.map(lambda leaf: leaf[None] if eqx.is_array(leaf) else leaf, posterior.mean),
    )


class Folded(NamedTuple):
    """Rows, and which members hold them out."""

    x: Any
    y: Any
    held: Any  # (rows, folds)


def cross_validation(setting: Setting, num_rows: int) -> Criterion:
    """Q = Σ log p(y | x, w_k) over the rows that member k holds out; the members are trained in one vmapped run.

    Member k is trained on the other folds: the most probable weights under the prior.
    """
    axes = Folded(None, None, 1)
    own = num_rows * (FOLDS - 1) / FOLDS

    def inner(model, hparams, rows, key):
        chosen = some(key, rows, setting.batch)
        weights = eqx.filter(model, eqx.is_inexact_array)
        prior = jax.tree.broadcast(in_training_units(setting, hparams), weights)
        decay = jax.tree.map(lambda w, h: jnp.sum(w**2 * jnp.exp(-h)) / 2, weights, prior)
        seen = 1 - chosen.held
        fit = jnp.sum(seen * setting.log_likelihood(model, Rows(chosen.x, chosen.y))) / jnp.maximum(jnp.sum(seen), 1)
        return sum(jax.tree.leaves(decay)) / own - fit

    def outer(size: int):
        def held_out(model, hparams, rows, key):
            chosen = some(key, rows, size)
            return -jnp.sum(chosen.held * setting.log_likelihood(model, Rows(chosen.x, chosen.y))) / len(chosen.y)

        return replicate_loss(held_out, axes)

    def data(rows, key):
        held = kfold_masks(key, len(rows.y), FOLDS).T
        return Folded(rows.x, rows.y, held.astype(jnp.float32))

    return Criterion(
        params=lambda key: init_replicas(setting.model, key, FOLDS),
        data=data,
        inner_loss=replicate_loss(inner, axes),
        outer_loss=outer(setting.outer_batch),
        evaluate=outer(EVERYTHING),
        models=lambda members: members,
    )
