"""Hyperparameters and options that an estimator cannot see, refused by name before anything is compiled."""

import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from ...ground.dependence import enters
from ...ground.shapes import remembered
from ...ground.tree import PartitionedModel, named_entries, named_leaves, pairing, with_values
from ...inner import AbstractInnerSolver, InnerState
from ...inner.optimiser_state import with_loss
from ...inner.stops import warn_of_stopped_step
from ...problem import BilevelProblem, inner_objective

PROBES = 3  # points at which derivatives are tried


def refuse_tol(inner: AbstractInnerSolver) -> None:
    """Raises `ValueError` for an inner solver with an option that steps which are differentiated cannot honour."""
    if inner.tol is not None:
        raise ValueError(
            f"the inner solver's option tol={inner.tol} would have no effect: a trajectory that is differentiated has "
            f"a fixed number of steps, here {inner.num_steps}; leave it out"
        )


def refuse_proximal(inner: AbstractInnerSolver, reason: str) -> None:
    """Raises `ValueError` for an inner solver whose solutions are not zeros of the inner gradient."""
    if not inner.smooth:
        raise ValueError(
            f"{inner.solver_class.__name__} does not end at a zero of the inner gradient (it has a proximal step or a "
            f"projection), and {reason}"
        )


def refuse_complex(arrays: PyTree, reason: str) -> None:
    """Raises `TypeError` naming the first complex array among the parameters."""
    for path, leaf in named_leaves(arrays, "params"):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"{path} is complex, and {reason}: train its real and imaginary parts as two arrays")


def refuse_unbounded(inner: AbstractInnerSolver, state: InnerState) -> None:
    """Raises for trainings whose error has no bound here: complex weights, and ends that are no stationary points."""
    refuse_complex(state.partitioned.arrays, "error bounds are those of real ones")
    if not inner.smooth:
        raise ValueError(
            f"power_steps above 0 asks for an error bound, and there is none where {inner.solver_class.__name__} ends: "
            "it has a proximal step or a projection"
        )


def refuse_unseen(inner: AbstractInnerSolver, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> None:
    """Refuses what the implicit function theorem cannot see.

    At a stationary point of L the learning rate, momentum and the like leave no trace, and their implicit
    hypergradient lacks their effect whatever it is. **Raises** `ValueError` naming every hyperparameter, and every
    entry of an array, that enters the optimiser but not ∇_w L, and `TypeError` for complex weights under a proximal
    step. Warns where a `stop_gradient` cuts the derivative of ∇_w L.
    """
    if not inner.smooth:
        refuse_complex(state.partitioned.arrays, "proximal steps are those of real numbers")
    warn_of_stopped_step(inner, problem, hparams, state, optimiser=False)
    partitioned, key, optimiser = state.partitioned, jax.random.key(0), inner.options.get("opt")
    if not callable(optimiser):
        return  # hyperparameters reach training through the loss alone
    gradient = lambda h: jax.grad(inner_objective(problem, partitioned, key))(partitioned.arrays, h)
    acts = enters(lambda h: _displacement(optimiser(h), partitioned.arrays, [partitioned.arrays]), hparams)
    sees = enters(gradient, hparams)
    both = any(map(operator.and_, acts, sees))
    entries = _unseen_entries(problem, optimiser, partitioned, hparams) if both else []
    unseen: list[str] = []
    for k, (path, _) in enumerate(named_leaves(hparams, "hparams")):
        if acts[k]:
            unseen += named_entries(path, entries[k]) if sees[k] else [path]
    if unseen:
        raise ValueError(
            f"{', '.join(unseen)} acts only through the optimiser: implicit estimators cannot see it (their "
            "hypergradient would lack its effect, whatever that is); use Reverse, DrMAD or Greedy"
        )


def refuse_warm(inner: AbstractInnerSolver, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> None:
    """Refuses optimisers with which training cannot go on from a warm start at other hyperparameters.

    **Raises** what `inner.refuse_adrift` raises, and `ValueError` naming a hyperparameter that only the optimiser's
    first state takes: from the second training on it would change nothing.
    """
    remembered(_refuse_warm, inner, problem, hparams, state)


def _refuse_warm(inner: AbstractInnerSolver, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> None:
    inner.refuse_adrift(hparams, state)
    if not callable(inner.options.get("opt")):
        return
    arrays = lambda *states: eqx.filter(states, eqx.is_array)
    first = lambda h: arrays(inner.trained(problem, state, h)[0])
    later = lambda h: arrays(inner.resume(problem, h, state), inner.trained(problem, state, h)[1])
    met, kept = enters(first, hparams), enters(later, hparams)
    paths = [path for path, _ in named_leaves(hparams, "hparams")]
    if lost := [path for path, a, b in zip(paths, met, kept, strict=True) if a and not b]:
        raise ValueError(
            f"{', '.join(lost)} enters training through the first state of the optimiser alone: after a warm start it "
            "would change nothing; use warm_start=False"
        )


def _displacement(optimiser: optax.GradientTransformation, arrays: PyTree, gradients: list[PyTree]) -> PyTree:
    """Returns the weights after updates with given gradients."""
    memory = optimiser.init(arrays)
    for gradient in gradients:
        loss = lambda arrays, gradient=gradient: pairing(gradient, arrays)
        updates, memory = with_loss(optimiser, loss).update(gradient, memory, arrays)
        arrays = optax.apply_updates(arrays, updates)
    return arrays


def _unseen_entries(
    problem: BilevelProblem, optimiser: Any, partitioned: PartitionedModel, hparams: PyTree
) -> list[np.ndarray]:
    """Returns, for every leaf of λ, the entries that move the optimiser and not the inner gradient.

    They are found by derivatives at random points. Inside a transformation random numbers stand in for
    arrays that have no values yet.
    """
    with jax.ensure_compile_time_eval():
        problem, partitioned, hparams = with_values((problem, partitioned, hparams))
        gradient = lambda arrays, h: jax.grad(inner_objective(problem, partitioned, jax.random.key(0)))(arrays, h)
        acts = [np.zeros(np.shape(leaf), bool) for leaf in jax.tree.leaves(hparams)]
        sees = [np.zeros(np.shape(leaf), bool) for leaf in jax.tree.leaves(hparams)]
        for k in range(PROBES):
            draw = lambda j, k=k: optax.tree.random_like(jax.random.key(10 * k + j), partitioned.arrays)
            arrays, cotangent = optax.tree.add(partitioned.arrays, draw(0)), draw(1)
            gradients = [draw(2 + j) for j in range(PROBES)]
            moved = lambda h, g=gradients: _displacement(optimiser(h), partitioned.arrays, g)
            for found, function in ((acts, moved), (sees, lambda h, a=arrays: gradient(a, h))):
                for flags, slope in zip(found, jax.tree.leaves(jax.vjp(function, hparams)[1](cotangent)), strict=True):
                    flags |= np.asarray(slope) != 0  # NaN counts as seen
    return [a & ~b for a, b in zip(acts, sees, strict=True)]
