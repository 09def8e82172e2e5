"""Curvatures: the Hessian of the inner loss in an implicit hypergradient, or a substitute for it; and a diagonal."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .data.sampler import as_sampler
from .ground.checks import field, function, number_or_function, real
from .ground.derivatives import linearize
from .ground.tree import PartitionedModel, in_single
from .inner import InnerState
from .linear.base import MatVec
from .problem import BilevelProblem, Loss, inner_objective

Curvature = Callable[
    [BilevelProblem, PyTree, PartitionedModel, Array], MatVec
]  # (problem, hparams, partitioned, key) -> v -> H v
CURVATURE = function("curvature", "(problem, hparams, partitioned, key) -> v -> H v")


def hessian(problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array) -> MatVec:
    """Returns v -> ∂²L/∂w² v. Linearised once; one key for every product, so that the operator is symmetric.

    **Example**

        >>> implicit = hg.Implicit(inner, curvature=hg.curvature.hessian)  # the default
        >>> implicit.linear_solver
        CG()
    """
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
        outputs, push = linearize(lambda w: self.outputs(partitioned.with_arrays(w).model, *rest), partitioned.arrays)
        pull = jax.linear_transpose(push, partitioned.arrays)
        _, bend = linearize(jax.grad(lambda z: self.loss(z, *rest)), outputs)
        penalty = lambda w: self.penalty(partitioned.with_arrays(w).model, *rest) if self.penalty else jnp.zeros(())
        _, stiffen = linearize(jax.grad(penalty), partitioned.arrays)
        return lambda v: optax.tree.add(pull(bend(push(v)))[0], stiffen(v))


def gauss_newton(problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array) -> MatVec:
    """Returns v -> G v for a problem whose `inner_loss` is a `GaussNewton`. **Raises** `TypeError` for another.

    **Example**

        >>> fit = lambda outputs, h, data, key: jnp.mean((outputs - data[1]) ** 2)
        >>> parts = hg.GaussNewton(lambda w, h, data, key: data[0] @ w, fit, lambda w, h, data, key: jnp.exp(h) * w @ w)
        >>> ridge = hg.BilevelProblem(parts, mse, problem.train, problem.valid)
        >>> estimator = hg.Implicit(hg.OptaxSolver(optax.sgd(0.1), 200), curvature=hg.curvature.gauss_newton)
        >>> print(f"{hg.value_and_hypergrad(ridge, estimator)(log_l2, w, key)[1]:.3f}")
        0.329
    """
    if not isinstance(problem.inner_loss, GaussNewton):
        raise TypeError("curvature=gauss_newton needs an inner_loss in parts: GaussNewton(outputs, loss, penalty)")
    return problem.inner_loss.product(problem, hparams, partitioned, key)


class AdamDiagonal(eqx.Module):
    """Adam's own diagonal at the end of training, D = (√v̂ + ε)/rate, v̂ = v/(1 - β₂^t): a `preconditioner`.

        hg.Implicit(inner, hg.CG(10), preconditioner=hg.curvature.AdamDiagonal())
        hg.Implicit(inner, hg.linear.Identity(), preconditioner=hg.curvature.AdamDiagonal(learning_rate=1e-3))

    The second is SAMA. v is the running mean of the squared gradients, which says how steep the loss of a batch is
    along a weight. Where the noise of gradients is proportional to the curvature, as for L_b = ½ Σ h_i (w_i - ξ_ib)²
    with ξ of one spread s, √v̂ = s h_i is the Hessian's diagonal but for a factor.

    **Arguments**: `learning_rate`, a number or a function of the hyperparameters, which is a common factor of D:
    iterative solvers do not see it; `eps` and `decay`, ε and β₂ of the optimiser.

    *Cost*: none. *Memory*: one vector.
    *When not to use it*: on all rows, where gradients vanish at the end of training, and √v̂ tells how training went.

    **Raises** `TypeError` where the inner solver is not one Adam, as in `optax.adam`, `adamw` and `nadam`.
    **Source**: Kingma and Ba (2015), Algorithm 1; Choe et al. (2023).
    """

    learning_rate: float | Callable[[PyTree], Array] = field(
        number_or_function(real("learning_rate", above=0), "hparams -> number"), 1.0
    )
    eps: float = field(real("eps", above=0), 1e-8)
    decay: float = field(real("decay", above=0, below=1), 0.999)

    def __call__(self, hparams: PyTree, state: InnerState) -> PyTree:
        """Returns D, like the trained arrays."""
        moments = lambda part: isinstance(part, optax.ScaleByAdamState)
        found = [part for part in jax.tree.leaves(state.solver, is_leaf=moments) if moments(part)]
        arrays = state.partitioned.arrays
        if len(found) != 1 or not _alike(found[0].nu, arrays):
            raise TypeError(f"AdamDiagonal needs an inner solver with one Adam for all weights, found {len(found)}")
        rate = self.learning_rate(hparams) if callable(self.learning_rate) else self.learning_rate
        share = 1 - self.decay ** found[0].count
        root = lambda v: jnp.sqrt(jnp.real(v) / share.astype(jnp.real(v).dtype))
        return jax.tree.map(lambda v: (root(v) + self.eps) / rate, in_single(found[0].nu))


def _alike(one: PyTree, other: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(one), jax.tree.structure(other)]
    return bool(structures[0] == structures[1])
