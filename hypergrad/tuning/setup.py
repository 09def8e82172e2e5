"""The choices that `tune` makes before it starts: periods, optimiser and starts."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ..ground.checks import shown
from ..ground.dependence import enters
from ..ground.hparams import num_not_finite
from ..ground.shapes import remembered
from ..ground.tree import PartitionedModel, describe, named_leaves
from ..inner import AbstractInnerSolver
from ..problem import BilevelProblem, inner_objective, outer_objective

SQUARES = 0.999  # share of its past in Adam's mean of squares
ADAM = optax.adam(0.2, b2=SQUARES)  # of the hyperparameters, in units of their scale
LEAST_GAIN = 0.01  # of the largest, below which a hyperparameter moves by less
FAST = 2.0  # times as far moves what enters a loss, such as a penalty: it acts at once, a momentum only later
SHIFT = math.log(10.0)  # from the given start to its rivals, in units of the scale


def periods(inner: AbstractInnerSolver, total: int) -> AbstractInnerSolver:
    """Returns the inner solver for the K updates between two moves of λ, with weights averaged over 2K updates."""
    period = math.isqrt(total // 2)
    solver = inner.with_num_steps(period)
    if solver.average is not None:
        return solver
    return eqx.tree_at(lambda s: s.average, solver, 1 - 1 / (2 * period), is_leaf=lambda leaf: leaf is None)


class ScaledUpdate(eqx.Module):
    """The update of Adam in units of a scale, by less where hardly anything is gained.

        Δλ_i = -0.2 s_i m_i / max(v_i, `LEAST_GAIN` · max_j G_j / (n s_i)),    G_j = Σ_{i in j} s_i v_i

    with m the mean of the hypergradients, v the root of their mean square, s the scale, n the entries of the array that
    i is in, and G_j what the outer loss changes by as array j moves by a unit of its scale. Adam's steps have one
    length however little they gain. A momentum, or a penalty that is no longer felt, then moves as far as the rate, by
    differences so small that the bias of a short horizon and the noise of the batches rule their sign.
    """

    scale: PyTree

    def __call__(self, updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        """Returns the update, and Adam's state."""
        updates, state = ADAM.update(updates, state, params)
        moments = state[0]
        past = 1 - SQUARES**moments.count
        sizes = jax.tree.map(lambda square, unit: unit * jnp.sqrt(square / past), moments.nu, self.scale)
        gains = jax.tree.map(jnp.sum, sizes)
        least = LEAST_GAIN * optax.tree.max(gains)

        def scaled(update: Array, size: Array, unit: Array) -> Array:
            gain = size.size * size
            return update * unit * gain / jnp.where(gain > 0, jnp.maximum(gain, least.astype(gain.dtype)), 1)

        return jax.tree.map(scaled, updates, sizes, self.scale), state


def scaled_adam(scale: PyTree) -> optax.GradientTransformation:
    """Returns Adam with steps in units of the scale, one optimiser for all calls: a new one would be compiled anew."""
    return optax.GradientTransformation(ADAM.init, ScaledUpdate(scale))


def like(tree: PyTree, hparams: PyTree, name: str) -> PyTree:
    """Returns the tree, or one number for all, in the structure, shapes and types of the hyperparameters."""
    for leaf in jax.tree.leaves(tree):
        kind = leaf.dtype if isinstance(leaf, np.generic | np.ndarray | jax.Array) else np.dtype(type(leaf))
        if not any(jnp.issubdtype(kind, real) for real in (jnp.floating, jnp.integer)):
            raise TypeError(f"{name} must be a number or like hparams, got {shown(leaf)}")
    if jax.tree_util.all_leaves([tree]) and jnp.ndim(tree) == 0:
        tree = jax.tree.map(lambda _: tree, hparams)
    try:
        full = jax.tree.map(lambda h, part: jnp.broadcast_to(jnp.asarray(part, h.dtype), h.shape), hparams, tree)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be a number or like hparams, {describe(hparams)}: {error}") from None
    for part, leaf in named_leaves(full, name):
        if num_not_finite(leaf):
            raise ValueError(f"{part} must be finite")
    return full


def in_losses(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> list[bool]:
    """Returns for every array of hyperparameters whether it enters a loss; what enters none enters the optimiser."""
    return remembered(_in_losses, problem, partitioned, hparams)


def _in_losses(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> list[bool]:
    key = jax.random.key(0)
    losses = lambda h: (
        inner_objective(problem, partitioned, key)(partitioned.arrays, h),
        outer_objective(problem, partitioned, key)(partitioned.arrays, h),
    )
    return enters(losses, hparams)


def units(scale: PyTree, hparams: PyTree) -> PyTree:
    """Returns the scale as a tree like the hyperparameters. **Raises** `ValueError` where it lets none of them move."""
    found = like(scale, hparams, "scale")
    entries = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])
    if np.any(entries < 0) or not np.any(entries > 0):
        raise ValueError("scale must be at least 0, and above 0 somewhere: the distance over which each matters")
    return found


def steps(scale: PyTree, fast: Sequence[bool]) -> PyTree:
    """Returns the scale, times `FAST` for the hyperparameters that enter a loss, see `in_losses`."""
    leaves, treedef = jax.tree.flatten(scale)
    return jax.tree.unflatten(treedef, [unit * (FAST if at else 1.0) for unit, at in zip(leaves, fast, strict=True)])


def all_starts(
    hparams: PyTree, scale: PyTree, fast: Sequence[bool], given: Sequence[PyTree] | None, most: int
) -> list[tuple[str, PyTree]]:
    """Returns the starts of the race by name, the given one first; what has no scale stays where it is in all of them.

    **Raises** `ValueError` where more than `most` are given.
    """
    found = [("the given start", hparams)]
    if given is not None:
        if not isinstance(given, list | tuple):
            raise TypeError(f"starts must be a list of pytrees like hparams, got {shown(given)}")
        if (number := len(given) + 1) > most:
            raise ValueError(f"starts: with the given one {number} take a budget of at least {2 * number**2}")
        return found + [(f"starts[{n}]", like(start, hparams, f"starts[{n}]")) for n, start in enumerate(given)]
    leaves, treedef = jax.tree.flatten(hparams)
    far = jax.tree.leaves(steps(scale, fast))
    for name, places in _groups(hparams, fast, most).items():
        if not any(bool(jnp.any(far[at] > 0)) for at in places):
            continue
        for word, shift in (("smaller", -SHIFT), ("larger", SHIFT)):
            moved = [leaf + shift * far[at] if at in places else leaf for at, leaf in enumerate(leaves)]
            found.append((f"{name} {word}", jax.tree.unflatten(treedef, moved)))
    return found


def _groups(hparams: PyTree, fast: Sequence[bool], most: int) -> dict[str, list[int]]:
    """Returns the indices of the arrays that move together, by name: those of one entry of the tree, and of the losses.

    Where the rates of all layers are too small, or a penalty ruins training, one of several alone does not help.
    """
    entries, of_losses = dict[str, list[int]](), [at for at, in_loss in enumerate(fast) if in_loss]
    for at, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(hparams)):
        if not fast[at]:
            entries.setdefault("hparams" + jax.tree_util.keystr(path[:1]), []).append(at)
    if 1 + 2 * (len(entries) + 1) > most:
        entries = {"all that enters no loss": [at for at, in_loss in enumerate(fast) if not in_loss]}
    return entries | {"all that enters a loss": of_losses}
