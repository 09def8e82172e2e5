"""The bilevel problem: two losses and two data sets."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from ..data.checks import check_data
from ..ground.checks import Rule, checked, function, instance
from ..ground.outside import read_outside

Loss = Callable[[PyTree, PyTree, PyTree, Array], Array]  # (model, hparams, data, key) -> scalar
LOSS = "(model, hparams, data, key) -> scalar"


class Holdout(eqx.Module):
    """The loss and the data that choose the best step of a search, in place of the outer loss and its data."""

    loss: Loss
    data: PyTree


def _loss(name: str) -> Rule:
    """Returns a rule for a loss. Compiled programs are found by it, so it needs a hash, or is a module of Equinox."""
    takes = function(name, LOSS)

    def convert(value: Any) -> Any:
        if not isinstance(value, eqx.Module):
            hash(value)
        return takes.convert(value)

    return Rule(name, f"{takes.expected} with a hash, which a dataclass has with frozen=True", convert)


class BilevelProblem(eqx.Module):
    """The problem of minimising an outer loss over hyperparameters λ through a model trained on an inner loss.

        min_λ F(w*(λ), λ; valid)    with    w*(λ) = argmin_w L(w, λ; train)

    **Arguments**

    - `inner_loss`, `outer_loss`: functions `(model, hparams, data, key) -> scalar`, both minimised. `model` is
      the pytree or `eqx.Module` given as `params`, whole. Everything random comes from `key`.
    - `train`: the data that `inner_loss` sees, a pytree of arrays. `valid`: the data that `outer_loss` sees.
      A test set does not belong here. Either may be `Batches` of them, of which the losses see one at a time.
    - `trainable`: the arrays of `params` to train, as a tree of truth values like `params` or a prefix of it, or a
      function `leaf -> bool`, as `equinox.partition` takes. All others are kept once, not per step. By default all
      arrays of floating numbers are trained, but for the state of Equinox's layers.

    **State.** Layers such as `equinox.nn.BatchNorm` have running averages. Then `params` is a pair
    `(model, state)`, and `inner_loss` returns `(scalar, new state)`; the new state is that of the next step. The outer
    loss is given the last state and returns a scalar. Trajectory estimators differentiate through the states; implicit
    ones and the single loops take the last one as constant, see docs/training-state.md.

    **Raises** `TypeError` where a loss is not callable or data hold objects or strings, `ValueError` where an
    array is empty or holds NaN or infinity; each names the argument and the path inside it.

    **Example**

        >>> ridge = hg.BilevelProblem(penalised, mse, train=(x[:10], y[:10]), valid=(x[10:], y[10:]))
        >>> print(f"{hg.evaluate(inner, ridge, w, log_l2, key).value:.3f}")
        0.352
    """

    inner_loss: Loss
    outer_loss: Loss
    train: PyTree
    valid: PyTree
    holdout: Holdout | None  # of a run that has one
    trainable: PyTree
    outside: tuple[int | str, ...] = eqx.field(static=True, repr=False)  # with other numbers there go other programs

    @checked(_loss("inner_loss"), _loss("outer_loss"))
    def __init__(self, inner_loss: Loss, outer_loss: Loss, train: PyTree, valid: PyTree, *, trainable: PyTree = True):
        self.inner_loss, self.outer_loss, self.holdout = inner_loss, outer_loss, None
        self.train, self.valid = check_data(train, "train"), check_data(valid, "valid")
        self.trainable = trainable
        self.outside = outside(inner_loss, outer_loss)


def outside(*losses: Loss) -> tuple[int | str, ...]:
    """Returns which functions the losses are, and a checksum of what they read from outside themselves."""
    return *(0 if isinstance(loss, eqx.Module) else hash(loss) for loss in losses), read_outside(*losses)


PROBLEM = instance("problem", BilevelProblem, "a BilevelProblem")
