"""What an estimator reports beside the hypergradient: counts, status, diagnostics."""

import enum

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .ground.tree import PartitionedModel, all_finite, partition


class Status(enum.IntFlag):
    """Run-time trouble, as flags that add up. `Status(int(code))` prints their names."""

    OK = 0
    NONFINITE = 1  # the value or the hypergradient holds NaN or infinity
    INNER_UNCONVERGED = 2  # an implicit estimator was used away from a stationary point
    LINEAR_UNCONVERGED = 4  # the linear solve stopped at its budget
    NEGATIVE_CURVATURE = 8  # the Hessian is not positive definite there
    ADJOINT_GROWTH = 16  # the adjoint outgrew its limit and was cut off
    IRREVERSIBLE = 32  # training run backwards did not come back to where it began


class Counts(eqx.Module):
    """Work done, as int32 scalars.

    `gradients` sums it up in units of one inner gradient: gradients and Hessian-vector products count 1, step-VJPs,
    which go forwards and backwards through a gradient, 2. Measured on a CPU: 0.9 to 1.1 for a product, 1.4 to 2.0 for
    a step-VJP; `python -m experiments.benchmarks.cost` measures them again.
    """

    iterations: Array  # updates of the model's parameters
    inner_gradients: Array
    step_vjps: Array
    hvps: Array  # Hessian-vector and mixed-derivative products
    outer_gradients: Array
    hyper_updates: Array

    def __init__(
        self,
        *,
        iterations: ArrayLike = 0,
        inner_gradients: ArrayLike = 0,
        step_vjps: ArrayLike = 0,
        hvps: ArrayLike = 0,
        outer_gradients: ArrayLike = 0,
        hyper_updates: ArrayLike = 0,
    ):
        self.iterations = jnp.asarray(iterations, jnp.int32)
        self.inner_gradients = jnp.asarray(inner_gradients, jnp.int32)
        self.step_vjps = jnp.asarray(step_vjps, jnp.int32)
        self.hvps = jnp.asarray(hvps, jnp.int32)
        self.outer_gradients = jnp.asarray(outer_gradients, jnp.int32)
        self.hyper_updates = jnp.asarray(hyper_updates, jnp.int32)

    @property
    def gradients(self) -> Array:
        """Gradient equivalents."""
        return self.inner_gradients + self.outer_gradients + self.hvps + 2 * self.step_vjps

    def __add__(self, other: "Counts") -> "Counts":
        return jax.tree.map(jnp.add, self, other)


class Stats(eqx.Module):
    """What happened in one estimator step.

    - `counts`: work done.
    - `status`: `Status` flags.
    - `residual`: relative residual of the linear solve, 0 where there is none.
    - `diagnostics`: further scalars by name, the same names at every step of one estimator.
    """

    counts: Counts
    status: Array
    residual: Array
    diagnostics: dict[str, Array]

    def __init__(
        self,
        counts: Counts,
        status: ArrayLike = Status.OK,
        residual: ArrayLike = 0.0,
        diagnostics: dict[str, Array] | None = None,
    ):
        self.counts = counts
        self.status = jnp.asarray(status, jnp.int32)
        self.residual = jnp.asarray(residual, jnp.result_type(residual))
        self.diagnostics = diagnostics or {}


class Estimate(eqx.Module):
    """What one estimator step returns.

    - `hypergradient`: like `hparams`.
    - `value`: the outer loss at (trained model, hparams) *before* any hyperparameter moves.
    - `params`: the trained model, whole.
    - `stats`: a `Stats`.
    """

    hypergradient: PyTree
    value: Array
    partitioned: PartitionedModel
    stats: Stats

    def __init__(self, hypergradient: PyTree, value: Array, params: PyTree, stats: Stats):
        finite = all_finite((value, hypergradient))
        status = stats.status | jnp.where(finite, Status.OK, Status.NONFINITE).astype(jnp.int32)
        self.hypergradient = hypergradient
        self.value = value
        self.partitioned = partition(params)
        self.stats = eqx.tree_at(lambda s: s.status, stats, status)

    @property
    def params(self) -> PyTree:
        """The trained model, whole."""
        return self.partitioned.model


def flag(condition: Array, status: Status) -> Array:
    """`status` where the condition holds, else OK."""
    return jnp.where(condition, jnp.int32(status), jnp.int32(Status.OK))
