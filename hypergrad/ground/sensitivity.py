"""Hyperparameters that can change nothing, or by no derivative, refused by name."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import PyTree

from .dependence import enters, traced
from .derivatives import reverse_only
from .tree import named_leaves


def refuse_unused(function: Callable[[PyTree], PyTree], hparams: PyTree, differentiable: bool = True) -> None:
    """Raises `ValueError` naming the hyperparameters on which no output of `function` depends; nothing is computed.

    Where they are to be learned by derivatives (`differentiable`) their changes have to reach an output.
    """
    function = traced(function, hparams)
    paths = [path for path, _ in named_leaves(hparams, "hparams")]
    if unused := [path for path, used in zip(paths, enters(function, hparams), strict=True) if not used]:
        raise ValueError(
            f"{', '.join(unused)} enters neither training nor the outer loss: its hypergradient would be 0 for ever; "
            "use it or leave it out"
        )
    if differentiable:
        _refuse_flat(lambda hparams: eqx.filter(function(hparams), eqx.is_inexact_array), hparams)


def _refuse_flat(function: Callable[[PyTree], PyTree], hparams: PyTree) -> None:
    """Raises `ValueError` naming the hyperparameters on whose *change* no output of `function` depends.

    They enter through comparisons, rounding, integers or `stop_gradient` alone. Nothing is computed. A function that
    JAX cannot differentiate in forward mode, because of a `custom_vjp`, is not judged.
    """
    if reverse_only(function, hparams):
        return
    push = lambda pair: jax.linearize(function, pair[0])[1](pair[1])
    paths = [path for path, _ in named_leaves(hparams, "hparams")]
    moves = enters(push, (hparams, hparams))[len(paths) :]
    if flat := [path for path, moved in zip(paths, moves, strict=True) if not moved]:
        raise ValueError(
            f"{', '.join(flat)} acts through comparisons, rounding, integers or stop_gradient alone: its hypergradient "
            "would be 0 for ever; make its effect smooth, or use ES, which needs no derivative"
        )
