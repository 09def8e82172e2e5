"""Derivatives by hyperparameters of which a training step reads few rows, such as a weight for every example.

The pullback of a step returns a gradient like the whole array, with zeros at all rows that the step did not read. Where
an array enters the step through gathers alone, as in `hparams["weight"][data["row"]]`, the step can be differentiated
by what the gathers return. To find them the step's jaxpr is read, and run by the small interpreter below.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval
from jax.tree_util import PyTreeDef
from jaxtyping import Array, PyTree

from ...ground.dependence import enters
from ...ground.tree import join, split
from ...inner import InnerState
from ...training import Training

LEAST = 4096  # entries of an array from which it pays
SHARE = 8  # one entry in so many may be read

Marked = dict[Var, int]  # variables that hold whole arrays of hyperparameters, with the numbers of these
Gather = Callable[[int, JaxprEqn, Array, Array], Array]  # (number of the array, equation, array, indices) -> rows


class Change(NamedTuple):
    """The derivative by rows read of one array: the array's number, the gather's equation, indices and values."""

    number: int
    gather: JaxprEqn
    indices: Array
    values: Array

    def added_to(self, total: Array, factor: Array) -> Array:
        """Returns `total` with `factor` times the values added where they belong."""
        read = self.gather.params["dimension_numbers"]
        written = jax.lax.ScatterDimensionNumbers(
            update_window_dims=read.offset_dims,
            inserted_window_dims=read.collapsed_slice_dims,
            scatter_dims_to_operand_dims=read.start_index_map,
            operand_batching_dims=read.operand_batching_dims,
            scatter_indices_batching_dims=read.start_indices_batching_dims,
        )
        kept = {name: self.gather.params[name] for name in ("unique_indices", "indices_are_sorted", "mode")}
        return jax.lax.scatter_add(total, self.indices, factor * self.values, written, **kept)


class Step(NamedTuple):
    """A step of training, traced: its jaxpr takes a state in two parts, t and the hyperparameters.

    What no result depends on, such as what solvers report of each step, is left out.
    """

    jaxpr: Jaxpr
    consts: Sequence[Any]
    variables: Sequence[Var]  # those of the hyperparameters
    structure: PyTreeDef  # of the result, a state in two parts


class ByRows(NamedTuple):
    """The numbers of the leaves of the hyperparameters of which every step reads few rows alone, and the step."""

    numbers: frozenset[int]
    step: Step


def read_by_rows(training: Training, state: InnerState) -> ByRows | None:
    """Returns what every step reads by rows, `None` where there is nothing."""
    large = [number for number, leaf in enumerate(jax.tree.leaves(training.hparams)) if leaf.size >= LEAST]
    if not large:
        return None
    step = _traced(training, state)
    marked = {step.variables[number]: number for number in large}
    read, otherwise = dict.fromkeys(large, 0), set[int]()
    for number, shape in _gathers(step.jaxpr, marked, otherwise):
        read[number] += shape.size
    renewed = enters(lambda hparams: training.inner.renew(training.problem, hparams, state), training.hparams)
    leaves = jax.tree.leaves(training.hparams)
    few = (n for n in large if not (renewed[n] or n in otherwise) and 0 < read[n] * SHARE <= leaves[n].size)
    return ByRows(found, step) if (found := frozenset(few)) else None


def step_vjp(
    training: Training, state: InnerState, t: Array, by_rows: ByRows
) -> tuple[InnerState, Callable[[InnerState], tuple[InnerState, list[Array | None], list[Change]]]]:
    """Returns the state after step t, and the pullback of a cotangent of that state, like `Training.step_vjp`.

    The pullback returns the cotangent of `state`, the leaves of the gradient with `None` for those `by_rows`, and of
    these the changes.
    """
    numbers, (jaxpr, consts, variables, structure) = by_rows
    marked = {variables[number]: number for number in numbers}
    leaves, (inexact, rest_of_state) = jax.tree.leaves(training.hparams), split(state)
    fixed = [*jax.tree.leaves(rest_of_state), t.astype(jnp.int32)]
    shapes = _gathers(jaxpr, marked, set())
    nothing = [jnp.zeros(shape.shape, shape.dtype) for _, shape in shapes]
    found: list[tuple[int, JaxprEqn]] = []

    def run(inexact: PyTree, dense: list[Array | None], moves: list[Array]) -> Any:
        found.clear()
        read, left = list[Array](), iter(moves)

        def gather(number: int, equation: JaxprEqn, array: Array, indices: Array) -> Array:
            found.append((number, equation))
            read.append(indices)
            return equation.primitive.bind(array, indices, **equation.params) + next(left)

        whole = [leaf if given is None else given for given, leaf in zip(dense, leaves, strict=True)]
        values = _evaluated(jaxpr, consts, [*jax.tree.leaves(inexact), *fixed, *whole], marked, gather)
        new, rest = jax.tree.unflatten(structure, values)
        return new, (rest, read)

    dense = [None if number in numbers else leaf for number, leaf in enumerate(leaves)]
    new, pullback, (rest, read) = jax.vjp(run, inexact, dense, nothing, has_aux=True)

    def pulled(cotangent: InnerState) -> tuple[InnerState, list[Array | None], list[Change]]:
        by_state, by_dense, values = pullback(cotangent)
        changes = [Change(*where, *both) for where, *both in zip(found, read, values, strict=True)]
        return by_state, by_dense, changes

    return join(new, rest), pulled


def _traced(training: Training, state: InnerState) -> Step:
    """Returns a step at states of the form of `state`."""
    phi = lambda inexact, rest, t, hparams: split(training.at(hparams).step(join(inexact, rest), t))
    closed, shapes = jax.make_jaxpr(phi, return_shape=True)(*split(state), jnp.int32(0), training.hparams)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    number = len(jax.tree.leaves(training.hparams))
    return Step(jaxpr, closed.consts, jaxpr.invars[len(jaxpr.invars) - number :], jax.tree.structure(shapes))


def _inside(equation: JaxprEqn) -> Any:
    """Returns the function that an equation calls and does nothing else, `None` for all other equations."""
    return equation.params["jaxpr"] if equation.primitive.name in ("jit", "pjit") else None


def _marks(equation: JaxprEqn, marked: Marked) -> dict[int, int]:
    """Returns the numbers of whole arrays by their positions among the arguments of an equation."""
    places = enumerate(equation.invars)
    return {place: marked[atom] for place, atom in places if not isinstance(atom, Literal) and atom in marked}


def _gathers(jaxpr: Jaxpr, marked: Marked, otherwise: set[int]) -> list[tuple[int, Any]]:
    """Returns for every gather, in order, the array that it reads and the shape of what it reads.

    The numbers of arrays that are used `otherwise` are added to that set.
    """
    found = list[tuple[int, Any]]()
    for equation in jaxpr.eqns:
        marks, inside = _marks(equation, marked), _inside(equation)
        if not marks:
            continue
        if equation.primitive.name == "gather" and set(marks) == {0}:
            found.append((marks[0], equation.outvars[0].aval))
        elif inside is not None:
            found += _gathers(inside.jaxpr, {inside.jaxpr.invars[n]: mark for n, mark in marks.items()}, otherwise)
        else:
            otherwise.update(marks.values())
    otherwise.update(marked[atom] for atom in jaxpr.outvars if not isinstance(atom, Literal) and atom in marked)
    return found


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], marked: Marked, gather: Gather) -> list[Any]:
    """Returns the results of a jaxpr, in which `gather` stands for gathers from whole arrays."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    look = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
    for equation in jaxpr.eqns:
        given, marks, inside = [look(atom) for atom in equation.invars], _marks(equation, marked), _inside(equation)
        if marks and inside is not None:
            within = {inside.jaxpr.invars[n]: mark for n, mark in marks.items()}
            found = _evaluated(inside.jaxpr, inside.consts, given, within, gather)
        elif marks:
            found = [gather(marks[0], equation, given[0], given[1])]
        else:
            found = _bound(equation, given)
        values |= zip(equation.outvars, found, strict=True)
    return [look(atom) for atom in jaxpr.outvars]


def _bound(equation: JaxprEqn, given: list[Any]) -> list[Any]:
    """Returns the results of one equation."""
    bound: Any = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # which of them depends on JAX's version
    with equation.ctx.manager:
        found = equation.primitive.bind(*functions, *given, **params)
    return list(found) if equation.primitive.multiple_results else [found]
