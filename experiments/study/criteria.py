"""The criteria as losses: evidence bound, evidence, cross-validation, held-out rows; Gaussian priors on the weights."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

import hypergrad as hg
from ensembles import MeanField, evidence, init_replicas, kfold_masks, negative_elbo, replicate_loss

from ..common.data import Rows, Splits
from .settings import Setting

CriterionName = Literal["cv", "elbo", "evidence"]
FOLDS = 4
SAMPLES = 16  # of the posterior, where the criterion is measured
EXACT = 100  # weights up to which the determinant of the evidence is exact
PROBES, PROBES_MEASURED, KRYLOV = 4, 16, 20  # of the log determinant, and the dimensions of its Krylov spaces


class Criterion(NamedTuple):
    """A pair of losses with their data: what is trained, and what is optimised.

    `hparams` is the log-variance h of a Gaussian prior N(0, exp(h)), one per weight, or a prefix of the tree of
    weights, or an array that broadcasts to the weights.
    """

    params: Callable[[Array], PyTree]  # key -> what is trained
    data: Callable[[Splits, Array], tuple[PyTree, PyTree]]  # (rows, key) -> data of the inner and of the outer loss
    inner_loss: hg.problem.Loss
    outer_loss: hg.problem.Loss
    evaluate: hg.problem.Loss  # the criterion, measured accurately
    models: Callable[[PyTree], PyTree]  # what was trained -> stacked models


def some_rows(key: Array, rows: PyTree, size: int) -> PyTree:
    """Returns all rows if there are no more than `size`, else a random `size` of them."""
    return rows if len(rows[1]) <= size else hg.minibatch(key, rows, size)


def log_variance(setting: Setting, hparams: PyTree) -> PyTree:
    """Returns the log-variances of the weights in the units in which they are trained."""
    return hparams if setting.offset is None else jax.tree.map(lambda h: h + setting.offset, hparams)


def penalty(setting: Setting, model: PyTree, hparams: PyTree) -> Array:
    """Returns ½ Σ_i w_i² exp(-h_i), minus the log-density of the prior at the weights of a model up to a constant."""
    weights = eqx.filter(model, eqx.is_inexact_array)
    prior = jax.tree.broadcast(log_variance(setting, hparams), weights)
    decay = jax.tree.map(lambda w, h: jnp.sum(w**2 * jnp.exp(-h)) / 2, weights, prior)
    return jax.tree.reduce(jnp.add, decay)


def elbo(setting: Setting, num_rows: int) -> Criterion:
    """Returns minus the evidence bound per row, Q = Σ log p(y | x, w) - KL(q || p) with w ~ q, for both levels.

    Training and criterion see the same rows.
    """

    def loss(size: int, num_samples: int) -> hg.problem.Loss:
        def negative(posterior, hparams, rows, key):
            row_key, weight_key = jax.random.split(key)
            chosen = some_rows(row_key, rows, size)
            likelihood = lambda model: setting.log_likelihood(model, chosen)
            prior = log_variance(setting, hparams)
            return negative_elbo(posterior, prior, likelihood, weight_key, num_rows, num_samples)

        return negative

    expected = setting.expected

    def in_closed_form(posterior, hparams, rows, key):
        assert expected is not None
        likelihood = lambda _: expected(posterior, rows)
        return negative_elbo(posterior, log_variance(setting, hparams), likelihood, key, num_rows)

    return Criterion(
        params=lambda key: MeanField(setting.model(key)),
        data=lambda rows, key: (rows.train, rows.train),
        inner_loss=loss(setting.batch, 1),
        outer_loss=loss(setting.outer_batch, 1),
        evaluate=loss(setting.evaluation_rows, SAMPLES) if expected is None else in_closed_form,
        models=lambda posterior: stacked(posterior.mean),
    )


def validation(setting: Setting, num_rows: int) -> Criterion:
    """Returns the cross-entropy on held-out rows of the most probable weights under the prior."""

    def inner_loss(model, hparams, rows, key):
        chosen = some_rows(key, rows, setting.batch)
        return -jnp.mean(setting.log_likelihood(model, chosen)) + penalty(setting, model, hparams) / num_rows

    def outer_loss(size):
        return lambda model, hparams, rows, key: -jnp.mean(setting.log_likelihood(model, some_rows(key, rows, size)))

    return Criterion(
        params=setting.model,
        data=lambda rows, key: (rows.train, rows.valid),
        inner_loss=inner_loss,
        outer_loss=outer_loss(setting.outer_batch),
        evaluate=outer_loss(setting.evaluation_rows),
        models=stacked,
    )


class Repeated(eqx.Module):
    """A likelihood of some rows that stand for more: each of them counts `times` times."""

    once: evidence.Likelihood
    times: float

    def negative_log(self, outputs: Array) -> Array:
        """Returns -log p(targets | outputs) of all that the rows stand for."""
        return self.times * self.once.negative_log(outputs)

    def root(self, outputs: Array) -> Array:
        """Returns the root of the curvature, √times that of one."""
        return math.sqrt(self.times) * self.once.root(outputs)


def marginal_likelihood(setting: Setting, num_rows: int) -> Criterion:
    """Returns minus the Laplace approximation of the log evidence per row, at the most probable weights.

    Training and criterion see the same rows. The determinant of a matrix that is not small is taken by stochastic
    Lanczos quadrature, with fresh signs at every hypergradient.
    """
    is_small = sum(leaf.size for leaf in jax.tree.leaves(setting.weights)) <= EXACT

    def outer_loss(size: int, probes: int) -> hg.problem.Loss:
        def negative(model, hparams, rows, key):
            row_key, sign_key = jax.random.split(key)
            chosen = some_rows(row_key, rows, size)
            laplace = evidence.Laplace(evidence.Full() if is_small else evidence.Lanczos(probes, KRYLOV, sign_key))
            likelihood = Repeated(setting.likelihood(chosen), num_rows / len(chosen.y))
            outputs, prior = lambda model: jax.vmap(model)(chosen.x), log_variance(setting, hparams)
            return laplace.negative_log_evidence(outputs, model, prior, likelihood) / num_rows

        return negative

    return validation(setting, num_rows)._replace(
        data=lambda rows, key: (rows.train, rows.train),
        outer_loss=outer_loss(setting.outer_batch, PROBES),
        evaluate=outer_loss(setting.evaluation_rows, PROBES_MEASURED),
    )


def stacked(model: PyTree) -> PyTree:
    """Returns one model as an ensemble of one."""
    return jax.tree.map(lambda leaf: leaf[None] if eqx.is_array(leaf) else leaf, model)


class Folded(NamedTuple):
    """Rows, and the replicas that hold each of them out."""

    x: Any
    y: Any
    held: Any  # (rows, folds)


def cross_validation(setting: Setting, num_rows: int) -> Criterion:
    """Returns minus the log-likelihood per row under the replica that has not seen the row.

    Replica k is trained on all folds but fold k: the most probable weights under the prior. All are trained in one
    vmapped run.
    """
    axes = Folded(None, None, 1)
    own = num_rows * (FOLDS - 1) / FOLDS

    def inner(model, hparams, rows, key):
        chosen = some_rows(key, rows, setting.batch)
        seen = 1 - chosen.held
        fit = jnp.sum(seen * setting.log_likelihood(model, Rows(chosen.x, chosen.y))) / jnp.maximum(jnp.sum(seen), 1)
        return penalty(setting, model, hparams) / own - fit

    def outer(size: int) -> hg.problem.Loss:
        def held_out(model, hparams, rows, key):
            chosen = some_rows(key, rows, size)
            return -jnp.sum(chosen.held * setting.log_likelihood(model, Rows(chosen.x, chosen.y))) / len(chosen.y)

        return replicate_loss(held_out, axes)

    def data(rows, key):
        held = kfold_masks(key, len(rows.train.y), FOLDS).T
        folded = Folded(rows.train.x, rows.train.y, held.astype(jnp.float32))
        return folded, folded

    return Criterion(
        params=lambda key: init_replicas(setting.model, key, FOLDS),
        data=data,
        inner_loss=replicate_loss(inner, axes),
        outer_loss=outer(setting.outer_batch),
        evaluate=outer(setting.evaluation_rows),
        models=lambda replicas: replicas,
    )


CRITERIA: dict[str, Callable[[Setting, int], Criterion]] = {
    "elbo": elbo,
    "evidence": marginal_likelihood,
    "cv": cross_validation,
    "validation": validation,
}
