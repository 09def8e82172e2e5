"""Cross-validation of any model as one bilevel problem."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .checks import KEY, checked, function, integer, refuse_unknown
from .ground.axes import refuse_unfit
from .ground.leaves import named_leaves
from .ground.memory import refuse_too_large
from .replicas import Loss, replicate_loss


class CrossValidation(NamedTuple):
    """Two losses over stacked models and two stacked data sets, in the order of `hypergrad.BilevelProblem`."""

    inner_loss: Loss
    outer_loss: Loss
    train: PyTree
    valid: PyTree


@checked(
    function("inner_loss", "(model, hparams, data, key) -> scalar"),
    function("outer_loss", "(model, hparams, data, key) -> scalar"),
    integer("num_folds", least=2),
    KEY,
)
def cross_validation(inner_loss: Loss, outer_loss: Loss, data: PyTree, num_folds: int, key: Array) -> CrossValidation:
    """Returns K-fold cross-validation of hyperparameters that all folds share:

        inner  Σ_k L(w_k, λ; all rows but those of fold k),    outer  1/K Σ_k F(w_k, λ; the rows of fold k)

    A problem of the losses and data of all folds:

        folds = ensembles.cross_validation(inner_loss, outer_loss, data, 5, key)
        problem = hypergrad.BilevelProblem(*folds)
        params = ensembles.init_replicas(make_model, key, 5)

    Model k is trained on its own rows alone; `replicate_optimiser` keeps optimisers that couple all weights apart. The
    rows are shuffled with `key`. Folds have equal sizes: up to K - 1 rows validate in no fold, and train in all.

    **Arguments**: `data`, a pytree of arrays with one leading axis of rows.

    *Cost*: K models. *Memory*: K - 1 copies of the data.

    **Raises** `TypeError` where data hold no arrays, `ValueError` where the leading axes differ or there are fewer rows
    than folds.

    **Source**: Stone (1974).

    **Example**

        >>> folds = ens.cross_validation(penalised, mse, (x, y), 4, key)
        >>> estimate = hg.value_and_hypergrad(hg.BilevelProblem(*folds), hg.Reverse(inner))
        >>> print(f"{estimate(log_l2, jnp.zeros((4, 3)), key)[0]:.3f}")
        0.663
    """
    refuse_unknown(data, "data")
    leaves = jax.tree.leaves(data)
    if not leaves or not all(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves):
        raise TypeError("data must be arrays, or a pytree of them")
    if len(sizes := {np.shape(leaf)[:1] for leaf in leaves}) != 1 or () in sizes:
        raise ValueError(
            f"data must have one leading axis of rows, got the shapes {[np.shape(leaf) for leaf in leaves]}"
        )
    ((rows,),) = sizes
    for path, leaf in named_leaves(data, "data"):
        if isinstance(leaf, np.ndarray):
            refuse_unfit(path, leaf)
    if rows < num_folds:
        raise ValueError(f"num_folds is {num_folds} but data has {rows} rows: a fold would be empty")
    refuse_too_large(float(num_folds) * sum(leaf.nbytes for leaf in leaves), "num_folds")
    order, size = np.asarray(jax.random.permutation(key, rows)), rows // num_folds
    held_out = order[: num_folds * size].reshape(num_folds, size)
    others = np.stack([np.setdiff1d(order, fold) for fold in held_out])
    take = lambda index: jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], data)
    total = replicate_loss(outer_loss, 0)
    mean: Loss = lambda models, hparams, data, key: total(models, hparams, data, key) / num_folds
    return CrossValidation(replicate_loss(inner_loss, 0), mean, take(others), take(held_out))
