"""Curvatures: the Hessian of the inner loss in an implicit hypergradient, or a substitute for it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .data.sampler import as_sampler
from .ground.checks import field, function
from .ground.derivatives import linearize
from .ground.tree import PartitionedModel
from .linear.base import MatVec
from .problem import BilevelProblem, Loss, inner_objective

Curvature = Callable[
    [BilevelProblem, PyTree, PartitionedModel, Array], MatVec
]  # (problem, hparams, partitioned, key) -> v -> H v
CURVATURE = function("curvature", "(problem, hparams, partitioned, key) -> v -> H v")


def hessian(problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array) -> MatVec:
    """Returns v -> ∂²L/∂w² v. Linearised once; one key for every product, so that the operator is symmetric."""
    gradient = jax.grad(inner_objective(problem, partitioned, key))
    return linearize(lambda arrays: gradient(arrays, hparams), partitioned.arrays)[1]


class GaussNewton(eqx.Module):
    """An inner loss in parts, and its Gauss-Newton matrix, which is positive semi-definite where the Hessian is not.

        L = loss(z) + penalty(w),  z = outputs(w);    G = Jᵀ (∂²loss/∂z²) J + ∂²penalty/∂w²,  J = ∂z/∂w

    It is the `inner_loss` of a problem; `gauss_newton` is the curvature that goes with it.

        problem = hg.BilevelProblem(hg.GaussNewton(logits, cross_entropy, weight_decay), outer_loss, train, valid)
        estimator = hg.Implicit(inner, hg.CG(20), curvature=hg.curvature.gauss_newton)

    **Arguments**: `outputs(model, hparams, data, key)`, any arrays; `loss(outputs, hparams, data, key)` and
    `penalty(model, hparams, data, key)`, scalars, convex in their first argument.

    *Bias*: leaves out Σ (∂loss/∂z) ∂²z/∂w²: nothing for linear models, little where residuals are small. The mixed
    derivative is the true one. **Source**: Schraudolph (2002), section 3.
    """

    outputs: Callable[[PyTree, PyTree, PyTree, Array], PyTree] = field(
        function("outputs", "(model, hparams, data, key) -> arrays")
    )
    loss: Loss = field(function("loss", "(outputs, hparams, data, key) -> scalar"))
    penalty: Loss | None = field(function("penalty", "(model, hparams, data, key) -> scalar", optional=True), None)

    def __call__(self, model: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
        """Returns the inner loss, L."""
        value = self.loss(self.outputs(model, hparams, data, key), hparams, data, key)
        return value if self.penalty is None else value + self.penalty(model, hparams, data, key)

    def product(self, problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array) -> MatVec:
        """Returns v -> G v, linearised once, or at every product where it is the mean over several batches."""
        sampler = as_sampler(problem.train)
        if sampler.batches_per_mean > 1:
            product = lambda v: lambda data, key: self._product(hparams, partitioned, data, key)(v)
            return lambda v: sampler.mean(product(v), key)
        return sampler.mean(lambda data, key: self._product(hparams, partitioned, data, key), key)

    def _product(self, hparams: PyTree, partitioned: PartitionedModel, data: PyTree, key: Array) -> MatVec:
        rest = (hparams, data, key)
        outputs, push = jax.linearize(
            lambda w: self.outputs(partitioned.with_arrays(w).model, *rest), partitioned.arrays
        )
        pull = jax.linear_transpose(push, partitioned.arrays)
        _, bend = jax.linearize(jax.grad(lambda z: self.loss(z, *rest)), outputs)
        penalty = lambda w: self.penalty(partitioned.with_arrays(w).model, *rest) if self.penalty else jnp.zeros(())
        _, stiffen = jax.linearize(jax.grad(penalty), partitioned.arrays)
        return lambda v: optax.tree.add(pull(bend(push(v)))[0], stiffen(v))


def gauss_newton(problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array) -> MatVec:
    """Returns v -> G v for a problem whose `inner_loss` is a `GaussNewton`. **Raises** `TypeError` for another."""
    if not isinstance(problem.inner_loss, GaussNewton):
        raise TypeError("curvature=gauss_newton needs an inner_loss in parts: GaussNewton(outputs, loss, penalty)")
    return problem.inner_loss.product(problem, hparams, partitioned, key)
