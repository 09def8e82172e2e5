"""The protocol of linear solvers: H v = b, the operator H given as a matrix-vector product."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ensembles.ground.axes import refuse_no_numbers

from ..ground.checks import checked, explained, field, function, instance, integer, real, shown
from ..ground.identity import refuse_different
from ..ground.tree import all_finite, cast_like, in_single, named_leaves, vdot
from ..ground.units import exponent, norm, shifted, unit

MatVec = Callable[..., PyTree]  # v -> H v; for stochastic solvers also (v, j) -> H_j v, draw j of the operator


class LinearSolution(eqx.Module):
    """The result of a linear solve.

    - `value`: v, like b.
    - `residual`: the relative residual ‖b - (H + damping I) v‖ / ‖b‖, recomputed at the end.
    - `steps`: products H v spent.
    - `negative_curvature`: true where a direction p with pᵀ(H + damping I)p <= 0 was met.
    - `draws`: those of the products that were made with a draw of their own, each of which costs a gradient more.
    """

    value: PyTree
    residual: Array
    steps: Array
    negative_curvature: Array
    draws: Array | int = 0


class AbstractLinearSolver(eqx.Module):
    """A method for H v = b that knows its budget.

    It stops at the budget whatever happens, and recomputes the residual that it reports. These short recursions are
    part of this library for that reason: solvers of other libraries return the solution alone, which hides an
    unfinished or indefinite solve. `symmetric` says that the method is right for symmetric operators alone.

    A `stochastic` solver calls `matvec(v, j)` too, for j = 0, 1, ...: a draw H_j of a random operator, independent of
    the others. `matvec(v)` is the product with one draw, the same throughout the solve.
    """

    symmetric: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False

    @abc.abstractmethod
    def solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """Returns a `LinearSolution`, from `init` (from zero if `None`).

        The solvers of this library take complex numbers as pairs of real ones, the system being real then too.
        An iteration stops once the relative residual is at most `max(rtol, self.rtol)`, or the budget is spent.
        """


def _explain(solver: AbstractLinearSolver, matvec: MatVec, b: PyTree, init: PyTree | None, *_: Any) -> None:
    if not any(leaf.size for leaf in jax.tree.leaves(b)):
        raise ValueError("b has no entries: there is nothing to solve")
    draws: tuple[tuple[Array, ...], ...] = ((), (jnp.int32(0),)) if solver.stochastic else ((),)
    for draw in draws:
        called = "matvec(b, 0)" if draw else "matvec(b)"
        try:
            product = jax.eval_shape(matvec, b, *draw)
        except Exception as error:
            raise ValueError(f"{called} fails: {type(error).__name__}: {error}") from error
        refuse_different(called, b, product, "like b")
    if init is not None:
        refuse_different("init", b, init, "like b")


class AbstractRealSolver(AbstractLinearSolver):
    """A solver of this library: a method for real numbers in single or double precision, whose `solve` takes others."""

    @abc.abstractmethod
    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """Solves a system of real numbers, the largest of b between ½ and 1, none in half precision."""

    @checked(function("matvec", "v -> H v"), real("rtol", least=0))
    def solve(self, matvec: MatVec, b: PyTree, init: PyTree | None = None, rtol: Array | float = 0.0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        for path, leaf in [*named_leaves(b, "b"), *named_leaves(init, "init")]:
            refuse_no_numbers(path, leaf)
            if not isinstance(leaf, np.ndarray | jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise TypeError(f"{path} must be an array of floating numbers, got {shown(leaf)}")
        return _solved(self, matvec, jax.tree.map(jnp.asarray, b), jax.tree.map(jnp.asarray, init), rtol, 1)


def solve(
    solver: AbstractLinearSolver, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float
) -> LinearSolution:
    """Returns the solution of H v = b, complex parts of v as pairs of real numbers, half precision as float32.

    It is NaN where b is not finite: the start, at which an iteration stops there, is no solution.

    Only the products H v are in half precision where b is. b and H v are derivatives: in JAX's convention Re Σ b z is
    the change along z, so that the imaginary part of b has the other sign. The real system is symmetric, which the
    complex one, not even linear, is not.
    """
    solution = _solved(solver, matvec, b, init, rtol, -1)
    return _with_value(solution, optax.tree.where(all_finite(b), solution.value, optax.tree.full_like(b, jnp.nan)))


@explained(_explain)
def _solved(
    solver: AbstractLinearSolver, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float, sign: int
) -> LinearSolution:
    """Returns the solution by the solver's own method, which sees real numbers in single or double precision."""
    method: Callable[..., LinearSolution] = solver.solve
    if isinstance(solver, AbstractRealSolver) and type(solver).solve is AbstractRealSolver.solve:
        method = solver._solve
    return _in_pairs(functools.partial(_widened, method), matvec, b, init, rtol, sign)


def _in_pairs(
    solve: Callable[..., LinearSolution],
    matvec: MatVec,
    b: PyTree,
    init: PyTree | None,
    rtol: Array | float,
    sign: int,
) -> LinearSolution:
    """Returns what `solve` does with complex numbers as pairs of real ones: of v, and with `sign` of b and H v."""
    if not any(map(jnp.iscomplexobj, jax.tree.leaves(b))):
        return solve(matvec, b, init, rtol)
    split = lambda tree, sign: jax.tree.map(
        lambda leaf: (leaf.real, sign * leaf.imag) if jnp.iscomplexobj(leaf) else leaf, tree
    )
    join = lambda tree: jax.tree.map(
        lambda like, parts: jax.lax.complex(*parts) if jnp.iscomplexobj(like) else parts, b, tree
    )
    start = None if init is None else split(init, 1)
    solution = solve(lambda v, *draw: split(matvec(join(v), *draw), sign), split(b, sign), start, rtol)
    return _with_value(solution, join(solution.value))


def _widened(
    solve: Callable[..., LinearSolution], matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float
) -> LinearSolution:
    """Returns what `solve` does, in single where b is in half precision, but for the products.

    It sees b in units of 2^k, k its largest exponent: no digit of the solution changes, and no square of b is too small
    or too large for its type.
    """
    wide = lambda v, *draw: in_single(matvec(cast_like(v, b), *draw))
    power = exponent(in_single(b))
    start = None if init is None else shifted(in_single(init), -power)
    solution = solve(wide, shifted(in_single(b), -power), start, rtol)
    return _with_value(solution, cast_like(shifted(solution.value, power), b))


def _with_value(solution: LinearSolution, value: PyTree) -> LinearSolution:
    return eqx.tree_at(lambda s: s.value, solution, value)


LINEAR_SOLVER = instance("linear_solver", AbstractLinearSolver, "a linear solver such as CG()")
DAMPING = real("damping", least=0)


class AbstractIterativeSolver(AbstractRealSolver):
    """A solver that comes closer with every step.

    **Arguments**: `max_steps`, the budget; `damping`, added to the diagonal; `rtol`, the relative residual to stop at.
    """

    max_steps: int = field(integer("max_steps", least=1), 20)
    _: dataclasses.KW_ONLY
    damping: float = field(DAMPING, 0.0)
    rtol: float = field(real("rtol", least=0), 1e-6)


def first_iterate(matvec: MatVec, b: PyTree, init: PyTree | None) -> tuple[PyTree, PyTree, int]:
    """Returns the first iterate, its residual, and the products spent. A warm start worse than none is dropped."""
    zero = optax.tree.zeros_like(b)
    if init is None:
        return zero, b, 0
    residual = optax.tree.sub(b, matvec(init))
    helps = norm(residual) < norm(b)
    return *optax.tree.where(helps, (init, residual), (zero, b)), 1


def last_iterate(matvec: MatVec, b: PyTree, value: PyTree, steps: Array, negative_curvature: Array) -> LinearSolution:
    """Returns the solution with its true residual; `steps` are the products spent before."""
    size = norm(b)
    residual = norm(optax.tree.sub(b, matvec(value))) / jnp.where(size > 0, size, 1)
    return LinearSolution(value, residual, steps + 1, negative_curvature)


def measured(matvec: MatVec, b: PyTree, value: PyTree, steps: Array) -> LinearSolution:
    """Returns the solution with its true residual and the sign of vᵀHv; `steps` are the products spent before."""
    image, size = matvec(value), norm(b)
    residual = norm(optax.tree.sub(b, image)) / jnp.where(size > 0, size, 1)
    return LinearSolution(value, residual, steps + 1, ~(jnp.real(vdot(value, image)) > 0) & (size > 0))


def damped(matvec: MatVec, damping: Array | float) -> MatVec:
    """Returns the operator v -> (H + damping I) v."""
    return lambda v, *draw: optax.tree.add_scale(matvec(v, *draw), damping, v)


class AbstractSteppingSolver(AbstractRealSolver):
    """A solver that goes along residuals in steps of one size, for operators that need not be symmetric.

    **Arguments**: `max_steps`, the budget; `damping`, added to the diagonal; `step_size`, α, or `None` for 1/λ̂ with λ̂
    the largest eigenvalue after `power_steps` power iterations from b.
    """

    symmetric: ClassVar[bool] = False

    max_steps: int = field(integer("max_steps", least=1), 20)
    _: dataclasses.KW_ONLY
    damping: float = field(DAMPING, 0.0)
    step_size: float | None = field(real("step_size", above=0, optional=True), None)
    power_steps: int = field(integer("power_steps", least=1), 5)

    def step(self, product: MatVec, b: PyTree) -> tuple[Array, int]:
        """Returns α, and the products spent on it."""
        if self.step_size is not None:
            return jnp.asarray(self.step_size), 0
        return inverse_of_largest(product, b, self.power_steps), self.power_steps


def inverse_of_largest(product: MatVec, b: PyTree, steps: int) -> Array:
    """Returns 1/λ̂, λ̂ the largest eigenvalue of H after so many power iterations from b.

    A stochastic operator is drawn anew at every iteration, draws 0, 1, ...: λ̂ is then above rather than below.
    """

    power = lambda j, carry: unit(product(carry[0], j))
    _, eigenvalue = jax.lax.fori_loop(0, steps, power, unit(b))
    return 1 / jnp.where(eigenvalue > 0, eigenvalue, 1)
