"""The Laplace approximation of the marginal likelihood: a criterion of hyperparameters on the training data alone.

    log p(D|λ) ≈ log p(D|w) + log p(w|λ) - ½ log det (G + P) + d/2 log 2π,    G = Σ JᵀΛJ,  P = diag exp(-h)

with w the trained weights, d of them, J the derivative of the outputs, Λ the curvature of the likelihood in the outputs
(the Gauss-Newton matrix G), and N(0, exp(h)) the prior of each weight. It is exact for linear models with Gaussian
noise. Train with `negative_log_joint`, and take `Laplace().negative_log_evidence` as outer loss on the same data.

**Source**: MacKay (1992); Immer, Bauer, Fortuin, Rätsch, Khan (2021).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .checks import (
    INTEGERS,
    Rule,
    array,
    call,
    checked,
    concrete,
    function,
    has_shape,
    instance,
    refuse_complex,
    refuse_unknown,
    shown,
)
from .structures import Diagonal as Diagonal
from .structures import Factor, Structure, jacobian
from .structures import Full as Full
from .structures import Kronecker as Kronecker
from .structures import Lanczos as Lanczos
from .variational import prior_log_variance

Outputs = Callable[[PyTree], Array]  # a model -> its outputs on some rows, of shape (rows,) or (rows, outputs)


@runtime_checkable
class Likelihood(Protocol):
    """The probability of the targets, given the outputs of shape (rows, outputs)."""

    def negative_log(self, outputs: Array) -> Array:
        """Returns -log p(targets | outputs), summed over the rows."""

    def root(self, outputs: Array) -> Array:
        """Returns S of shape (rows, outputs, outputs) with S Sᵀ = Λ = -∂² log p/∂outputs²."""


def _number_or_array(value: object) -> Array | float:
    """Returns a Python number as it is, so that it takes the type of the outputs, and anything else as an array."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    found: Array = array("log_variance").convert(value)
    return found


NOISE = Rule("log_variance", "a finite number or an array of them", _number_or_array)


class Gaussian(eqx.Module):
    """Independent targets y ~ N(output, exp(log_variance)); `log_variance` may be a hyperparameter.

    `targets` have the shape of the outputs. `log_variance` is a number or one per output.
    """

    targets: Array = eqx.field(converter=array("targets"))
    log_variance: Array | float = eqx.field(converter=NOISE)

    def negative_log(self, outputs: Array) -> Array:
        """Returns ½ Σ (y - output)²/σ² + log 2πσ²."""
        targets = _matrix(self.targets, "targets")
        has_shape(targets, outputs.shape, "targets", "the outputs")
        residual = targets - outputs
        log_variance = jnp.broadcast_to(self.log_variance, outputs.shape)
        return jnp.sum(residual**2 * jnp.exp(-log_variance) + log_variance + math.log(2 * math.pi)) / 2

    def root(self, outputs: Array) -> Array:
        """Returns 1/σ on the diagonal."""
        scale = jnp.exp(-jnp.broadcast_to(self.log_variance, outputs.shape) / 2)
        return scale[..., None] * jnp.eye(outputs.shape[1], dtype=outputs.dtype)


class Categorical(eqx.Module):
    """Labels 0 ... K - 1 with probabilities softmax(outputs)."""

    labels: Array = eqx.field(converter=array("labels", kinds=INTEGERS))

    def __check_init__(self) -> None:
        if jnp.ndim(self.labels) != 1 or (concrete(self.labels) and np.any(np.asarray(self.labels) < 0)):
            raise ValueError(f"labels must be integers from 0 on, of shape (rows,), got {shown(self.labels)}")

    def negative_log(self, outputs: Array) -> Array:
        """Returns the cross-entropy, summed over the rows."""
        has_shape(self.labels, outputs.shape[:1], "labels", "the outputs")
        if concrete(self.labels) and (largest := np.max(np.asarray(self.labels))) >= outputs.shape[1]:
            raise ValueError(f"labels must be below the number of outputs, {outputs.shape[1]}, got {largest}")
        labels = self.labels[:, None]
        found = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels, 1)  # which counts -1 from the end
        return -jnp.sum(jnp.where(labels < 0, jnp.nan, found))

    def root(self, outputs: Array) -> Array:
        """Returns diag(√p) - p √pᵀ, because its square is diag(p) - p pᵀ."""
        p = jax.nn.softmax(outputs)
        return jnp.sqrt(p)[..., None] * jnp.eye(p.shape[1], dtype=p.dtype) - p[..., None] * jnp.sqrt(p)[:, None]


OUTPUTS = function("outputs", "from a model to its outputs on the training rows")
LIKELIHOOD = instance("likelihood", Likelihood, "a likelihood such as Gaussian(targets, 0.0)")


@checked(OUTPUTS, LIKELIHOOD)
def negative_log_joint(outputs: Outputs, model: PyTree, log_variance: PyTree, likelihood: Likelihood) -> Array:
    """Returns -log p(D|w) - log p(w|λ), the loss to train the weights with.

    **Arguments**: `outputs`, a function from a model to its outputs on the training rows; `log_variance`, h of the
    prior, a tree like the floating arrays of the model or any prefix of it, as in `gaussian_kl`; `likelihood`, such as
    `Gaussian(y, log_noise)` or `Categorical(labels)`.
    """
    weights, h = _weights(model, log_variance)
    prior = jnp.sum(weights**2 * jnp.exp(-h) + h + math.log(2 * math.pi)) / 2
    values = _matrix(call("outputs", outputs, "model", model))
    return call("likelihood", likelihood.negative_log, "the outputs of model", values) + prior


def whole(model: PyTree) -> PyTree:
    """Returns the model: all of its weights have a prior."""
    return model


STRUCTURE = instance("structure", Structure, "Full(), Lanczos(), Kronecker() or Diagonal()")
WHERE = function("where", "from a model to the part of it that has a prior")


class Laplace(eqx.Module):
    """Laplace's approximation at the weights of a model.

    - `structure`: `Full()`, or `Lanczos()`, `Kronecker()` or `Diagonal()` where the matrix is too large.
    - `where`: the part of the model whose weights have a prior, e.g. `lambda model: model.layers[-1]` for the last
      layer. The others are constants, and `log_variance` is a prefix of this part.

    Other arguments are those of `negative_log_joint`, whose minimum the weights should be. The methods raise
    `ValueError` where `where` selects no floating array or `log_variance` does not fit.
    """

    structure: Structure = eqx.field(converter=STRUCTURE, default=Full())
    _: dataclasses.KW_ONLY
    where: Callable[[PyTree], PyTree] = eqx.field(converter=WHERE, default=whole)

    @checked(OUTPUTS, LIKELIHOOD)
    def negative_log_evidence(
        self, outputs: Outputs, model: PyTree, log_variance: PyTree, likelihood: Likelihood
    ) -> Array:
        """Returns -log p(D|λ).

        Its derivative in λ at fixed weights is the online rule of Immer et al. (2021); through training it is an
        ordinary outer loss. *Cost*: see `structure`.
        """
        values, factor = self._at(outputs, model, log_variance, likelihood)
        fit = (
            call("likelihood", likelihood.negative_log, "the outputs of model", values)
            + jnp.sum(factor.weights**2 * jnp.exp(-factor.h)) / 2
        )
        return fit + self.structure.log_det(factor) / 2

    @checked(function("new_outputs", "from a model to its outputs on new rows"), OUTPUTS, LIKELIHOOD)
    def predict(
        self, new_outputs: Outputs, outputs: Outputs, model: PyTree, log_variance: PyTree, likelihood: Likelihood
    ) -> tuple[Array, Array]:
        """Returns mean (rows, k) and covariance (rows, k, k) of the outputs on new rows under the posterior.

        The network is linearised at its weights: the covariance is J (G + P)⁻¹ Jᵀ. Noise of the targets is not in it.
        `new_outputs` and `outputs` give the outputs on the new and on the training rows.

        **Source**: Khan, Immer, Abedi, Korzepa (2019); Immer, Korzepa, Bauer (2021).
        """
        _, factor = self._at(outputs, model, log_variance, likelihood)
        new, mean = self._outputs_of(new_outputs, model, "new_outputs")
        return mean, self.structure.covariance(factor, jacobian(new, factor.weights, mean.size) * jnp.exp(factor.h / 2))

    def _at(
        self, outputs: Outputs, model: PyTree, log_variance: PyTree, likelihood: Likelihood
    ) -> tuple[Array, Factor]:
        """Returns the outputs and the factor, which holds the weights and h of each."""
        part = self.where(model)
        weights, h = _weights(part, log_variance)
        if weights.dtype.itemsize < 4:
            raise TypeError(f"model has weights in {weights.dtype}; a determinant needs float32 or float64")
        of, values = self._outputs_of(outputs, model)
        shapes = tuple(map(jnp.shape, jax.tree.leaves(eqx.filter(part, eqx.is_inexact_array))))
        return values, Factor(of, weights, h, likelihood.root(values), shapes)

    def _outputs_of(self, outputs: Outputs, model: PyTree, name: str = "outputs") -> tuple[Outputs, Array]:
        """Returns the outputs as a function of the vector of weights, and their values."""
        arrays, rest = eqx.partition(self.where(model), eqx.is_inexact_array)
        _, unravel = ravel_pytree(arrays)

        def of(weights: Array) -> Array:
            part = eqx.combine(unravel(weights), rest)
            return _matrix(outputs(part if self.where is whole else eqx.tree_at(self.where, model, part)))

        return of, _matrix(call(name, outputs, "model", model), name)


@checked(array("mean"), array("covariance"))
def probit_probabilities(mean: Array, covariance: Array) -> Array:
    """Returns softmax(m / √(1 + π s²/8)), the class probabilities of uncertain outputs with variances s².

    **Source**: MacKay (1992), with the variances of the single outputs.
    """
    if not mean.shape or covariance.shape != (*mean.shape, *mean.shape[-1:]):
        raise ValueError(
            f"mean and covariance must have shapes (..., k) and (..., k, k), got {mean.shape} and {covariance.shape}"
        )
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    return jax.nn.softmax(mean / jnp.sqrt(1 + jnp.pi * variance / 8))


def _weights(part: PyTree, log_variance: PyTree) -> tuple[Array, Array]:
    """Returns the weights as one vector, and h of each."""
    refuse_unknown(part, "model")
    arrays = eqx.filter(part, eqx.is_inexact_array)
    if not jax.tree.leaves(arrays):
        raise ValueError("model holds no floating-point array in the part that has a prior")
    refuse_complex(arrays, "model")
    spread = prior_log_variance(log_variance, arrays)
    prior = jax.tree.map(lambda w, h: jnp.broadcast_to(jnp.asarray(h, w.dtype), w.shape), arrays, spread)
    return ravel_pytree(arrays)[0], ravel_pytree(prior)[0]


def _matrix(outputs: Array, name: str = "outputs") -> Array:
    """Returns the outputs with shape (rows, k)."""
    if np.ndim(outputs) not in (1, 2):
        raise ValueError(f"{name} must have shape (rows,) or (rows, outputs), got {np.shape(outputs)}")
    return outputs[:, None] if np.ndim(outputs) == 1 else outputs
