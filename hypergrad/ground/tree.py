"""Models and other pytrees, in the form that JAX can carry."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ensembles.ground.axes import refuse_no_numbers
from ensembles.ground.leaves import named_leaves as named_leaves
from ensembles.ground.rule import shown

from .gathering import gathered
from .portable import loaded, portable


class Rest:
    """The part of a model that is no array: a hashable constant of the structure, which can be pickled and copied.

    A `PyTreeDef` of Equinox modules cannot, so the pytree itself is kept, with `None` in place of arrays.
    """

    def __init__(self, tree: PyTree):
        self.tree = tree
        leaves, treedef = jax.tree.flatten(tree)
        self._key = tuple(map(portable, leaves)), treedef

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rest) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Rest({self.tree!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rest":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rest, (jax.tree.map(portable, self.tree),)


def _rest(tree: PyTree) -> Rest:
    return Rest(jax.tree.map(loaded, tree))


class Buffers(eqx.Module):
    """Arrays that no training step changes. Nothing differentiates or records them, whatever their type."""

    tree: PyTree


class PartitionedModel(eqx.Module):
    """A model as a pytree of arrays alone; whatever is no array sits in its structure.

    Any pytree goes in, an `eqx.Module` with activation functions and integers included. The result passes through
    `jit`, `scan` and `vmap`, and `.model` is the model again.
    """

    arrays: PyTree  # inexact arrays, which the inner solver moves
    layer_state: PyTree  # arrays that the inner loss returns anew at every step, such as running averages, or None
    buffers: Buffers  # all other arrays
    static: Rest = eqx.field(static=True)

    def __init__(self, model: PyTree, trainable: PyTree = True, has_state: bool = False):
        """Partitions a model.

        **Arguments**: `trainable`, a tree of truth values or functions of a leaf, like the model or a prefix of it, of
        the arrays to train; `has_state`: the model is a pair, and its second part the state of its layers.
        """
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, model)
        stateful = lambda part: isinstance(part, eqx.nn.State | eqx.nn.StateIndex)
        outside = jax.tree.map(lambda part: not stateful(part), model, is_leaf=stateful)
        trained, rest = eqx.partition(model, (outside[0], False) if has_state else outside)
        self.arrays, more = eqx.partition(trained, jax.tree.map(_inexact_where, trainable))
        self.layer_state, rest = eqx.partition(eqx.combine(rest, more), (False, eqx.is_array) if has_state else False)
        if not has_state:
            self.layer_state = None
        buffers, rest = eqx.partition(rest, eqx.is_array)
        self.buffers, self.static = Buffers(buffers), Rest(rest)

    @property
    def model(self) -> PyTree:
        """The whole model, ready to be called."""
        parts = self.arrays, self.buffers.tree, self.static.tree
        return eqx.combine(*parts) if self.layer_state is None else eqx.combine(*parts, self.layer_state)

    def with_arrays(self, arrays: PyTree) -> "PartitionedModel":
        """Returns the same model with other trained arrays."""
        return self.moved(arrays, self.layer_state)

    def moved(self, arrays: PyTree, layer_state: PyTree) -> "PartitionedModel":
        """Returns the same model after a step of training."""
        moving = lambda partitioned: (partitioned.arrays, partitioned.layer_state)
        return eqx.tree_at(moving, self, (arrays, layer_state), is_leaf=lambda leaf: leaf is None)

    def layer_state_of(self, state: PyTree) -> PyTree:
        """Returns the `layer_state` of a state of the layers as the losses return it."""
        return self.layer_state[0], eqx.filter(state, eqx.is_array)


def _inexact_where(flag: Any) -> Callable[[Any], bool]:
    """Returns the filter of the inexact arrays for which `flag` is true, or returns true."""
    if isinstance(flag, bool | np.bool_):
        return lambda leaf: bool(flag) and eqx.is_inexact_array(leaf)
    if not callable(flag):
        raise TypeError(f"trainable must hold truth values or functions of a leaf, got {shown(flag)}")
    return lambda leaf: eqx.is_inexact_array(leaf) and bool(flag(leaf))


def partition(model: PyTree) -> PartitionedModel:
    """Returns the model partitioned as if all of it were trained; one that is partitioned so already passes."""
    if isinstance(model, PartitionedModel):
        whole = model.layer_state is None and not jax.tree.leaves(eqx.filter(model.buffers.tree, eqx.is_inexact_array))
        return model if whole else PartitionedModel(model.model)
    return PartitionedModel(model)


def distinct(tree: PyTree) -> PyTree:
    """Returns the tree with a copy wherever an array occurs again, so that all its buffers can be donated."""
    seen: set[int] = set()

    def once(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return jnp.copy(leaf)

    return jax.tree.map(once, tree)


def strong(tree: PyTree) -> PyTree:
    """Returns the same arrays without weak types, which would cost a second trace later."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree)


def strong_arrays(tree: PyTree) -> PyTree:
    """Returns the tree with `strong` on its array leaves; other leaves pass."""
    arrays, rest = eqx.partition(tree, lambda leaf: isinstance(leaf, np.ndarray | jax.Array))
    return eqx.combine(strong(arrays), rest)


def _is_buffers(part: Any) -> bool:
    return isinstance(part, Buffers)


def split(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the leaves that carry a gradient, and the others, each with `None` elsewhere; see `join`.

    The `Buffers` of models carry none.
    """
    return eqx.partition(tree, eqx.is_inexact_array, is_leaf=_is_buffers)


def join(inexact: PyTree, rest: PyTree) -> PyTree:
    """Returns the tree that was split."""
    return eqx.combine(inexact, rest)


def map_moving(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Returns the tree with `function` applied to all leaves outside of `Buffers`, which stay those of `tree`."""
    apply = lambda leaf, *more: leaf if _is_buffers(leaf) else function(leaf, *more)
    return jax.tree.map(apply, tree, *others, is_leaf=_is_buffers)


def without_buffers(tree: PyTree) -> PyTree:
    """Returns the tree with `None` in place of `Buffers`."""
    return jax.tree.map(lambda leaf: None if _is_buffers(leaf) else leaf, tree, is_leaf=_is_buffers)


def differentiable(tree: PyTree) -> PyTree:
    """Returns the leaves that carry a gradient; `None` elsewhere."""
    return split(tree)[0]


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Returns the arrays in the types of those of `like`."""
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), tree, like)


def all_finite(tree: PyTree) -> Array:
    """Returns whether every entry of every floating leaf is finite."""
    leaves = gathered(differentiable(tree))
    if not leaves:
        return jnp.bool_(True)
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for (leaf,) in leaves]).astype(jnp.float32)
    # A product, which XLA computes once. A reduction it repeats in each use of its result, of which there is one for
    # every leaf that depends on the answer: programs would grow by the square of their number.
    return jnp.dot(bad, bad) == 0


def in_single(tree: PyTree) -> PyTree:
    """Returns the arrays with those in half precision, whose sums and small steps would be lost, in float32."""
    half = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if half(leaf) else leaf, tree)


def vdot(a: PyTree, b: PyTree) -> Array:
    """Returns the inner product over all leaves, of half precision in float32."""
    a, b = in_single((a, b))
    # All axes but the last first, apart from the last: the CPU backend vectorises that, and not a sum over everything.
    columns = lambda x, y: jnp.sum(jnp.conj(x) * y, axis=range(x.ndim - 1))
    total = lambda x, y: jnp.sum(jax.lax.optimization_barrier(columns(x, y)))
    return optax.tree.sum([total(x, y) for x, y in gathered(a, b)])


def pairing(cotangent: PyTree, tangent: PyTree) -> Array:
    """Returns Re Σ g z over all leaves, a derivative along a direction, of half precision in float32.

    For complex numbers this is JAX's convention.
    """
    cotangent, tangent = in_single((cotangent, tangent))
    total = lambda g, z: jnp.real(jnp.sum(g * z))
    return optax.tree.sum([total(g, z) for g, z in gathered(cotangent, tangent)])


def describe(tree: PyTree) -> str:
    """Returns shapes and types of a pytree on one line, for error messages."""
    try:
        return eqx.tree_pformat(tree, width=10_000, short_arrays=True, struct_as_array=True)
    except Exception:  # of somebody's class
        return f"an object of type {type(tree).__name__}, or of such, that has no text"


def epsilon(tree: PyTree) -> float:
    """Returns the largest machine epsilon of the leaves."""
    return max(float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in jax.tree.leaves(tree))


def form(tree: PyTree) -> tuple[Any, ...]:
    """Returns the structure, shapes and types of a tree of arrays, to be compared."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, *((leaf.shape, leaf.dtype) for leaf in leaves)


def alike(one: PyTree, other: PyTree) -> bool:
    """Returns whether two trees have one structure, arrays of the same shapes and types, and identical other leaves."""
    arrays = jax.Array | jax.ShapeDtypeStruct
    kind = lambda leaf: (leaf.shape, leaf.dtype) if isinstance(leaf, arrays) else id(leaf)
    flat = map(jax.tree.flatten, (one, other))
    first, second = ((structure, [kind(leaf) for leaf in leaves]) for leaves, structure in flat)
    return first == second


def named_entries(path: str, flags: np.ndarray, most: int = 5) -> list[str]:
    """Returns the names of the entries of an array where `flags` holds, as `hparams['rates'][3]`.

    At most so many are named, and the rest counted; all together are named by the path alone.
    """
    if flags.all():
        return [path]
    positions = [f"{path}[{', '.join(map(str, index))}]" for index in np.argwhere(flags)]
    return positions[:most] + ([f"{len(positions) - most} more of {path}"] if len(positions) > most else [])


def with_values(tree: PyTree) -> PyTree:
    """Returns the tree with random numbers, and zeros for integers, in place of arrays that have no values yet."""

    def value(leaf: Any) -> Any:
        if not isinstance(leaf, jax.core.Tracer):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(value, tree)


def refuse_foreign(tree: PyTree, name: str) -> None:
    """Raises `TypeError` naming the path of an array without numbers, or an object that JAX cannot take apart."""
    for path, leaf in named_leaves(tree, name):
        refuse_no_numbers(path, leaf)
        if not isinstance(leaf, np.ndarray | jax.Array) and type(leaf).__hash__ is None:
            raise TypeError(f"{path} is a {type(leaf).__name__}, which is no pytree and no constant")
