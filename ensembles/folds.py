"""Masks of the rows that are held out, by folds, by groups or at random; and folds as replicas."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from .checks import ANY, INTEGERS, KEY, array, checked, has_shape, integer, mask, real
from .ground.memory import refuse_too_large
from .replicas import replica_keys

STRATA = array("strata", kinds=INTEGERS, host=True, optional=True)


@checked(KEY, integer("num_rows", least=1), integer("num_folds", least=2), STRATA)
def kfold_masks(key: Array, num_rows: int, num_folds: int, strata: ArrayLike | None = None) -> Array:
    """Returns masks of shape (folds, rows), true where a row is held out; every row is in exactly one fold.

    Folds differ in size by at most one row, and with `strata`, the group number of every row, also within every group.

    **Raises** `ValueError` where there are fewer rows than folds.

    **Example**

        >>> ens.kfold_masks(key, 4, num_folds=2).astype(int)
        Array([[1, 0, 0, 1],
               [0, 1, 1, 0]], dtype=int32)
    """
    rows, folds = num_rows, num_folds
    if rows < folds:
        raise ValueError(f"num_folds is {folds} but num_rows is {rows}: a fold would be empty")
    refuse_too_large((40 + folds) * rows, "num_rows")
    order = _shuffled(key, _codes(strata, rows))
    fold = jnp.zeros(rows, jnp.int32).at[order].set(jnp.arange(rows, dtype=jnp.int32) % folds)
    return fold == jnp.arange(folds)[:, None]


@checked(array("groups", kinds=INTEGERS, host=True), array("fold_of_group", kinds=INTEGERS, host=True))
def group_masks(groups: ArrayLike, fold_of_group: ArrayLike) -> Array:
    """Returns masks of shape (folds, rows) that hold out whole groups, such as the data sets of one experiment.

    **Arguments**: `groups`, the group number of every row; `fold_of_group`, the fold of every group, or -1 for a group
    that is never held out.

    **Raises** `ValueError` where a fold would be empty or a group has no fold.

    **Example**

        >>> ens.group_masks([0, 0, 1, 2], fold_of_group=[0, 1, -1]).astype(int)
        Array([[1, 1, 0, 0],
               [0, 0, 1, 0]], dtype=int32)
    """
    groups, fold = np.asarray(groups), np.asarray(fold_of_group)
    has_shape(groups, (None,), "groups")
    has_shape(fold, (None,), "fold_of_group")
    if groups.size == 0 or groups.min() < 0 or groups.max() >= len(fold):
        raise ValueError(f"groups must be indices from 0 to {len(fold) - 1}, the groups that fold_of_group knows")
    if fold.min() < -1:
        raise ValueError(f"fold_of_group must hold the numbers of folds, or -1, got {fold}")
    refuse_too_large(2.0 * (fold.max() + 1) * groups.size, "fold_of_group")
    masks = fold[groups] == np.arange(max(fold.max(), 0) + 1)[:, None]
    if not masks.any(1).all():
        raise ValueError(f"fold_of_group leaves no row to fold {np.flatnonzero(~masks.any(1)).tolist()} of groups")
    return jnp.asarray(masks)


@checked(KEY, integer("num_rows", least=1), real("fraction", above=0, below=1), integer("num", least=1), STRATA)
def holdout_masks(key: Array, num_rows: int, fraction: float, num: int, strata: ArrayLike | None = None) -> Array:
    """Returns `num` independent splits as masks of shape (num, rows), true for the validation rows.

    Each replica can have its own split.

    The fraction of rows held out is that of all rows, and with `strata`, the group number of every row, of every group,
    to the nearest row.

    **Raises** `ValueError` where `fraction` is not between 0 and 1, or holds out no row or all.

    **Example**

        >>> ens.holdout_masks(key, 4, 0.25, num=2).sum(1)
        Array([1, 1], dtype=int32)
    """
    refuse_too_large((40 + 16 * num) * num_rows, "num_rows" if num_rows > num else "num")
    codes = _codes(strata, num_rows)
    sizes = np.bincount(codes)
    starts, quota = np.cumsum(sizes) - sizes, np.round(fraction * sizes)
    if not 0 < quota.sum() < num_rows:
        raise ValueError(f"fraction {fraction} holds out {int(quota.sum())} of {num_rows} rows (num_rows)")
    held = jnp.asarray(np.arange(num_rows) - np.repeat(starts, sizes) < np.repeat(quota, sizes))
    draw = lambda key: jnp.zeros(num_rows, bool).at[_shuffled(key, codes)].set(held)
    return jax.vmap(draw)(replica_keys(key, num))


@checked(mask("masks"), array("pseudodata"))
def cross(masks: ArrayLike, pseudodata: ArrayLike) -> tuple[Array, Array]:
    """Returns the masks and the data of K·R replicas, every fold with every pseudodata, both of shape (K·R, rows).

    Replica k·R + r holds out fold k and sees row r of `pseudodata`; `by_fold` takes the replicas apart again.

    **Example**

        >>> held_out, targets = ens.cross(masks, ens.monte_carlo(key, data, factor, 3))
        >>> held_out.shape, targets.shape
        ((6, 4), (6, 4))
    """
    masks, pseudodata = jnp.asarray(masks), jnp.asarray(pseudodata)
    has_shape(masks, (None, None), "masks")
    has_shape(pseudodata, (None, masks.shape[1]), "pseudodata", "masks")
    return jnp.repeat(masks, len(pseudodata), axis=0), jnp.tile(pseudodata, (len(masks), 1))


@checked(array("values", finite=False, kinds=ANY), integer("num_folds", least=1))
def by_fold(values: Array, num_folds: int) -> Array:
    """Returns values of K·R replicas in the shape (K, R, ...), see `cross`.

    **Example**

        >>> ens.by_fold(jnp.arange(6), num_folds=2)
        Array([[0, 1, 2],
               [3, 4, 5]], dtype=int32)
    """
    if values.ndim == 0 or len(values) == 0 or len(values) % num_folds:
        raise ValueError(
            f"values has shape {values.shape}, its leading axis is not a multiple of num_folds = {num_folds}"
        )
    return values.reshape(num_folds, -1, *values.shape[1:])


def _codes(strata: ArrayLike | None, rows: int) -> np.ndarray:
    """Returns group numbers without gaps."""
    if strata is None:
        return np.zeros(rows, np.int64)
    has_shape(strata, (rows,), "strata", "num_rows")
    return np.unique(np.asarray(strata), return_inverse=True)[1]


def _shuffled(key: Array, codes: np.ndarray) -> Array:
    """Returns the indices of all rows, group by group, in random order within each."""
    return jnp.lexsort((jax.random.permutation(key, len(codes)), jnp.asarray(codes)))
