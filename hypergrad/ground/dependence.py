"""Dependences of a function's results on its arguments, read from its jaxpr."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from .jaxprs import walked


class Origin(NamedTuple):
    """The origin of a number, as bits."""

    inputs: int = 0  # the bits of the inputs that it is computed from
    copied: int | None = None  # the input that it is an unchanged copy of, if it is one


class Origins(NamedTuple):
    """The origin of every output leaf, and the input bits of every number on the way."""

    outputs: list[Origin]
    met: set[int]


def enters(function: Callable[[PyTree], PyTree], argument: PyTree) -> list[bool]:
    """Returns for every leaf of `argument` whether any output of `function` depends on it. Nothing is computed."""
    return used(jax.make_jaxpr(function)(argument).jaxpr)


def used(jaxpr: Jaxpr) -> list[bool]:
    """Returns for every input whether any output depends on it."""
    return list(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1])


def origins(function: Callable[..., PyTree], arguments: Sequence[PyTree], inputs: Sequence[Origin]) -> Origins:
    """Returns the origins of the outputs of `function(*arguments)`, whose leaves have the origins `inputs`.

    Choices between copies of one input are copies of it. Loops are opaque: all that leaves one depends on all that
    enters it.
    """
    closed, met = jax.make_jaxpr(function)(*arguments), set[int]()
    return Origins(_outputs(closed.jaxpr, inputs, met), met)


def _outputs(jaxpr: Jaxpr, inputs: Sequence[Origin], met: set[int]) -> list[Origin]:
    def through(equation: JaxprEqn, given: list[Origin]) -> list[Origin]:
        found = _results(equation, given, met)
        met.update(origin.inputs for origin in found)
        return found

    return walked(jaxpr, inputs, Origin(), through)


def _results(equation: JaxprEqn, inputs: list[Origin], met: set[int]) -> list[Origin]:
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        predicate, *rest = inputs
        branches = [_outputs(branch.jaxpr, rest, met) for branch in params["branches"]]
        return [_choice(predicate, cases) for cases in zip(*branches, strict=True)]
    if name == "select_n":
        return [_choice(inputs[0], inputs[1:])]
    if name == "convert_element_type" and equation.invars[0].aval.strip_weak_type() == equation.outvars[0].aval:
        return inputs
    inside = params.get("jaxpr", params.get("call_jaxpr"))
    if inside is not None and name not in ("scan", "while"):
        return _outputs(getattr(inside, "jaxpr", inside), inputs, met)
    return [Origin(_union(inputs))] * len(equation.outvars)


def _choice(predicate: Origin, cases: Sequence[Origin]) -> Origin:
    first = cases[0]
    if first.copied is not None and all(case.copied == first.copied for case in cases):
        return first
    return Origin(_union([predicate, *cases]))


def _union(origins: Sequence[Origin]) -> int:
    bits = 0
    for origin in origins:
        bits |= origin.inputs
    return bits
