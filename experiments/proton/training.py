"""All folds and replicas as one bilevel problem, compiled once for any data of one shape."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import ensembles as ens
import hypergrad as hg

from .chi2 import Misfit, all_fields, make_misfit, split_points
from .data import Measurements, ProtonTables
from .hyperparameters import Box, Choices, Unit, as_arrays, spread
from .model import AbstractTheory, Layers, ProtonTheory, RegressionTheory, draw_own, penalty, shapes, unmoved


class Given(eqx.Module):
    """Everything that training is given: arrays only, so that folds, seeds and choices share one compiled program."""

    theory: AbstractTheory
    own: PyTree  # of the members
    choices: Choices  # of the members
    misfit: Misfit
    box: Box
    fixed: dict[str, Array]  # hyperparameters that do not move, in [-1, 1]

    def hparams(self, unit: PyTree) -> PyTree:
        """Returns the hyperparameters of every member, in their own units."""
        return self.box.natural(spread({**self.fixed, **unit}, self.box.low, len(self.misfit.offsets)))

    def fields(self, members: Layers, unit: PyTree) -> tuple[Array, Array]:
        """Returns the values that predictions are made of, and the predictions not linear in them, of every member."""
        return all_fields(self.theory, members, self.own, self.hparams(unit), self.choices)

    def chi2(self, members: Layers, unit: PyTree) -> Array:
        """Returns the chi2 of every member."""
        return self.misfit(*self.fields(members, unit))


# The sum over members of chi2 to their own training points, and of the weight decay; in parts, for implicit estimators.
train_loss = hg.GaussNewton(
    lambda members, unit, given, key: given.fields(members, unit),
    lambda fields, unit, given, key: jnp.sum(given.misfit(*fields)),
    lambda members, unit, given, key: jnp.sum(
        eqx.filter_vmap(penalty)(members, given.own, given.hparams(unit), given.choices)
    ),
)


class HeldOut(eqx.Module):
    """L1 of the folds: their central data, experimental covariance, the mean over the `best` share of the replicas."""

    best: float = eqx.field(static=True)

    def __call__(self, members: Layers, unit: PyTree, data: tuple[Given, tuple[ens.Fold, ...]], key: Array) -> Array:
        """Returns the outer loss."""
        given, folds = data
        predictions = ens.by_fold(predict(members, unit, given), len(folds))
        keep = jax.vmap(ens.is_finite)(jax.lax.stop_gradient(predictions))
        return ens.mean_loss(predictions, folds, keep, self.best)


def predict(members: Layers, unit: PyTree, given: Given) -> Array:
    """Returns predictions of all members for all points, (M, N)."""
    fields, _ = given.fields(members, unit)
    return jax.vmap(given.theory.predict)(fields)


class Optimiser(eqx.Module):
    """(N)Adam for each replica by itself, gradients clipped, stopped on its own validation points.

    `eps_root` in place of `eps`: the derivative at a weight that never moved is then 0 and not 0/0.
    """

    given: Given  # with the validation points
    steps: int = eqx.field(static=True)

    def __call__(self, unit: PyTree) -> optax.GradientTransformation:
        """Returns the transformation at given hyperparameters."""
        hparams = self.given.hparams(unit)
        rates = {name: hparams[name] for name in ("log_rate", "log_clip")}
        each = ens.replicate_optimiser(_adam, settings=(rates, self.given.choices.nesterov))
        losses = lambda members: self.given.chi2(members, unit)
        return ens.early_stopping(each, losses, self.given.choices.patience, max_updates=self.steps)


def _adam(setting: Any) -> optax.GradientTransformation:
    rates, nesterov = setting
    plain, lookahead = (optax.scale_by_adam(eps=0.0, eps_root=1e-14, nesterov=n) for n in (False, True))

    def update(updates, state, params=None):
        straight, after = plain.update(updates, state, params)
        ahead, _ = lookahead.update(updates, state, params)
        return optax.tree.where(nesterov, ahead, straight), after

    moments = optax.GradientTransformation(plain.init, update)
    rate = optax.scale_by_learning_rate(jnp.exp(rates["log_rate"]))
    return optax.chain(optax.clip_by_global_norm(jnp.exp(rates["log_clip"])), moments, rate)


@dataclass(frozen=True)
class Sizes:
    """The numbers that decide the shapes: members are K folds times `replicas`, or the replicas alone."""

    replicas: int
    steps: int
    max_widths: tuple[int, ...]
    train_fraction: float
    own_splits: bool  # a split for every replica; else one for all
    best: float


class Fit:
    """An ensemble that can be trained at any hyperparameters: `problem` and `inner` for `hypergrad`.

    With `cross`, replica r of fold k (member k·R + r) sees no point of fold k, and L1 is what it predicts there; else
    all members see all points, and the "folds" of the outer loss are one, all points.
    """

    def __init__(self, measured: Measurements, sizes: Sizes, seed: int, cross: bool):
        self.measured, self.sizes, self.cross = measured, sizes, cross
        N, R = len(measured.values), sizes.replicas
        self.held_out = measured.folds if cross else np.ones((1, N), bool)
        used = ~measured.folds if cross else np.ones((1, N), bool)
        K = self.num_folds = len(used)
        tables = measured.tables
        self.theory = ProtonTheory(tables) if isinstance(tables, ProtonTables) else RegressionTheory(tables)
        preprocessing = self.theory.outputs if isinstance(tables, ProtonTables) else 0
        self.box = Box(len(sizes.max_widths), preprocessing)
        layers = shapes(self.theory.inputs, self.theory.outputs, sizes.max_widths)
        replicate = lambda tree: jax.tree.map(lambda a: jnp.tile(a, (K, *[1] * (a.ndim - 1))), tree)
        self.own = replicate(
            ens.init_replicas(lambda key: draw_own(key, layers, self.theory.outputs), jax.random.key(seed), R)
        )
        self.start = jax.tree.map(
            lambda a: jnp.tile(a, (K * R, *[1] * a.ndim)), unmoved(layers, float(preprocessing > 0))
        )
        pseudodata = np.tile(self._pseudodata(seed), (K, 1))
        split = split_points(measured, used, sizes.train_fraction, seed, R if sizes.own_splits else 1)
        self.train = make_misfit(measured, split.train, pseudodata)
        self.stop = make_misfit(measured, split.valid, pseudodata)
        self.folds = _folds(self.held_out, measured)
        self.outer = HeldOut(sizes.best)

    def of_length(self, steps: int) -> "Fit":
        """Returns the same fit, whose chi2 need not be made again, with so many training steps."""
        other = copy.copy(self)
        other.sizes = replace(self.sizes, steps=steps)
        return other

    def _pseudodata(self, seed: int) -> np.ndarray:
        """Draws D + L z with the t0 covariance, (R, N)."""
        factor = np.linalg.cholesky(self.measured.covariance_t0)
        with jax.enable_x64(True):
            drawn = ens.monte_carlo(jax.random.key(seed + 1), self.measured.values, factor, self.sizes.replicas)
            return np.asarray(drawn)

    def prepare(self, choices: Choices, fixed: Unit | None = None) -> tuple[hg.BilevelProblem, hg.AbstractInnerSolver]:
        """Returns problem and inner solver at these choices, of all members or of each.

        The hyperparameters named in `fixed` are no longer among those that the problem takes.
        """
        ints = Choices(jnp.int32(0), jnp.int32(0), jnp.bool_(0), jnp.bool_(0), jnp.bool_(0))
        typed = Choices(*(jnp.asarray(c, like.dtype) for c, like in zip(choices, ints, strict=True)))
        shape = Choices(np.zeros(len(self.sizes.max_widths)), 0.0, 0.0, 0.0, 0.0)
        chosen = spread(typed, shape, len(self.train.offsets))
        held = as_arrays(fixed or {})
        given = lambda misfit: Given(self.theory, self.own, chosen, misfit, self.box, held)
        train, stop = given(self.train), given(self.stop)
        problem = hg.BilevelProblem(train_loss, self.outer, train, (train, self.folds))
        return problem, hg.OptaxSolver(Optimiser(stop, self.sizes.steps), self.sizes.steps)

    def predictions(self, members: Layers, unit: PyTree, problem: hg.BilevelProblem) -> np.ndarray:
        """Returns predictions of shape (K, R, N), in the precision of training."""
        found = np.asarray(_predict(members, as_arrays(unit), problem.train))
        return found.reshape(self.num_folds, -1, found.shape[-1])


def _folds(masks: np.ndarray, measured: Measurements) -> tuple[ens.Fold, ...]:
    """Returns what `ens.make_folds` does, with covariances factorised in double precision."""
    to = lambda a: jnp.asarray(a, jnp.result_type(float))
    rows = [np.flatnonzero(mask) for mask in masks]
    factor = lambda points: np.linalg.cholesky(measured.covariance[np.ix_(points, points)])
    return tuple(ens.Fold(jnp.asarray(i, jnp.int32), to(measured.values[i]), to(factor(i))) for i in rows)


_predict = eqx.filter_jit(predict)
