"""Kinds of arguments of this library alone: optimisers, types, text, paths."""

import numbers
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ensembles.ground.rule import Rule


def number_or_function(number: Rule, signature: str) -> Rule:
    """Returns a rule for what `number` takes, or a function."""

    def convert(value: Any) -> Any:
        return value if callable(value) and not isinstance(value, type) else number.convert(value)

    return Rule(number.name, f"{number.expected} or a function {signature}", convert, number.optional)


def optimiser(name: str) -> Rule:
    """Returns a rule for an optax optimiser."""

    def convert(value: Any) -> Any:
        if isinstance(value, optax.MultiSteps):
            return value.gradient_transformation()
        if not isinstance(value, optax.GradientTransformation):
            raise TypeError
        return value

    return Rule(name, "an optax optimiser such as optax.adam(0.1)", convert)


def floating_type(name: str) -> Rule:
    """Returns a rule for a type of floating numbers, or `None`."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray | jax.Array | numbers.Number | tuple | list | dict):
            raise TypeError
        if not jnp.issubdtype(jnp.dtype(value), jnp.floating):
            raise TypeError
        return value

    return Rule(name, "a floating type such as jnp.float16", convert, optional=True)


def text(name: str, optional: bool = False) -> Rule:
    """Returns a rule for text that is not empty."""

    def convert(value: Any) -> Any:
        if not isinstance(value, str):
            raise TypeError
        if not value:
            raise ValueError
        return value

    return Rule(name, "text", convert, optional)


def path(name: str, optional: bool = False) -> Rule:
    """Returns a rule for the path of a file.

    Integers are refused: they would be taken for files that are open, `True` for the output.
    """

    def convert(value: Any) -> Any:
        text = os.fspath(value)
        if not isinstance(text, str):
            raise TypeError
        if not text or "\0" in text:
            raise ValueError
        return text

    return Rule(name, "the path of a file (str or os.PathLike)", convert, optional)
