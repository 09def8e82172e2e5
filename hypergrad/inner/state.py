"""The state of training, and the part of it that the outer loss judges."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..ground.show import paragraph, show, show_size
from ..ground.tree import PartitionedModel, cast_like, describe, form, in_single, named_leaves, strong


class InnerState(eqx.Module):
    """The state (w, s) of training: the model and the solver's own state (moments, counters, history).

    `average` holds the averaged weights, like the trained arrays, where the inner solver keeps them, else `None`.
    `feed` holds what the training data say where they are read in parts, else `None`.
    """

    partitioned: PartitionedModel
    solver: PyTree
    average: PyTree = None
    feed: Array | None = None

    @property
    def judged(self) -> PartitionedModel:
        """The model that the outer loss sees: that of the averaged weights where there are any."""
        if self.average is None:
            return self.partitioned
        return self.partitioned.with_arrays(cast_like(self.average, self.partitioned.arrays))

    @property
    def params(self) -> PyTree:
        """The model that the outer loss sees, whole."""
        return self.judged.model

    def __repr__(self) -> str:
        """Shows the size of the model, and the updates that the solver has made."""
        return paragraph("InnerState", self.lines())

    def lines(self) -> tuple[str, str]:
        """Returns the size of the model, and the updates made, as texts."""
        updates = getattr(self.solver, "iter_num", None)
        return f"params: {show_size(self.partitioned)}", f"updates: {show(updates)}"


class AbstractTrainedState(eqx.Module):
    """A state that carries that of training on, as `inner`."""

    inner: eqx.AbstractVar[InnerState]

    @property
    def params(self) -> PyTree:
        """The model, whole."""
        return self.inner.params


class SolveStats(eqx.Module):
    """The counts of one solve: updates made and gradients evaluated."""

    iterations: Array
    gradients: Array


def refuse_mixed(arrays: PyTree) -> None:
    """Raises `TypeError` naming two weights of different types, where jaxopt's solvers carry numbers of one."""
    kinds = {leaf.dtype: path for path, leaf in named_leaves(arrays, "params")}
    if len(kinds) > 1:
        found = ", ".join(f"{path} is {kind}" for kind, path in kinds.items())
        raise TypeError(
            f"{found}: weights that are trained must be of one type; cast them, or leave some out by trainable"
        )


def refuse_retyped(before: InnerState, after: InnerState) -> None:
    """Raises `TypeError` where a step of training changed the types or shapes of the parameters."""
    if form(before.partitioned) != form(after.partitioned):
        raise TypeError(
            "one inner step changes the types of the parameters: "
            f"{describe(before.partitioned.arrays)} -> {describe(after.partitioned.arrays)}; "
            "do data and params agree in dtype?"
        )


def first_average(average: float | None, arrays: PyTree) -> PyTree:
    """Returns w̄_0 = w_0, in float32 where w is in half precision, which loses small steps; `None` without a share."""
    return None if average is None else jax.tree.map(jnp.array, in_single(arrays))


def next_average(average: float | None, means: PyTree, arrays: PyTree) -> PyTree:
    """Returns w̄ + (1 - β)(w - w̄), β = `average`; `None` without one."""
    if average is None:
        return None
    return jax.tree.map(lambda mean, w: mean + (1 - average) * (w.astype(mean.dtype) - mean), means, arrays)


def typed(state: InnerState, like: InnerState) -> InnerState:
    """Returns the state in the types of `like`."""
    return strong(jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, like))
