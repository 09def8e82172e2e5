"""Hyperparameters that can change nothing, or by no derivative, refused by name."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import PyTree

from .dependence import enters, traced
from .derivatives import reverse_only
from .tree import named_leaves

UNUSED = "enters neither training nor the outer loss"


def refuse_unused(
    function: Callable[[PyTree], PyTree], hparams: PyTree, differentiable: bool = True, reason: str = UNUSED
) -> None:
    """Raises `ValueError` naming the hyperparameters on which no output of `function` depends; nothing is computed.

    Where they are to be learned by derivatives (`differentiable`) their changes have to reach an output.
    """
    function = traced(function, hparams)
    paths = [path for path, _ in named_leaves(hparams, "hparams")]
    if unused := [path for path, used in zip(paths, enters(function, hparams), strict=True) if not used]:
        raise ValueError(f"{', '.join(unused)} {reason}: its hypergradient would be 0 for ever; use it or leave it out")
    if differentiable:
        _refuse_flat(lambda hparams: eqx.filter(function(hparams), eqx.is_inexact_array), hparams)


def moves(function: Callable[[PyTree], PyTree], argument: PyTree) -> list[bool] | None:
    """Returns for every leaf of `argument` whether its change changes any output of `function`. Nothing is computed.

    A leaf that enters through comparisons, rounding, integers or `stop_gradient` alone does not. Returns `None` for a
    function that JAX cannot differentiate in forward mode, because of a `custom_vjp`.
    """
    if reverse_only(function, argument):
        return None
    push = lambda pair: jax.linearize(function, pair[0])[1](pair[1])
    return enters(push, (argument, argument))[len(jax.tree.leaves(argument)) :]


def _refuse_flat(function: Callable[[PyTree], PyTree], hparams: PyTree) -> None:
    """Raises `ValueError` naming the hyperparameters on whose *change* no output of `function` depends."""
    if (moved := moves(function, hparams)) is None:
        return
    paths = [path for path, _ in named_leaves(hparams, "hparams")]
    if flat := [path for path, moving in zip(paths, moved, strict=True) if not moving]:
        raise ValueError(
            f"{', '.join(flat)} acts through comparisons, rounding, integers or stop_gradient alone: its hypergradient "
            "would be 0 for ever; make its effect smooth, or use ES, which needs no derivative"
        )


def refuse_flat_loss(name: str, loss: Callable[[PyTree], PyTree], weights: PyTree) -> None:
    """Raises `ValueError` naming a loss that depends on the weights and whose derivative does not."""
    moved = moves(loss, weights)
    if moved is not None and not any(moved) and any(enters(loss, weights)):
        raise ValueError(
            f"{name} depends on the weights through comparisons, rounding, integers or stop_gradient alone, as a count "
            "of errors does: its hypergradient would be 0 for ever; use a smooth loss, or ES, which needs no derivative"
        )
