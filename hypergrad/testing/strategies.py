"""Hypothesis strategies. Where only seeds vary nothing is compiled again; every new size or setting is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

import hypergrad as hg

from .problems import AVERAGES, OPTIMISERS, SCHEDULES, SIZES, Case, logistic, net, quadratic, ridge

seeds = st.integers(0, 2**20)


def problems(kinds: Sequence[Callable[..., Case]] = (quadratic, ridge, logistic, net)) -> st.SearchStrategy[Case]:
    """Draws cases of the given kinds, of all sizes in `problems.SIZES`; shrinks to the first kind, small, seed 0."""
    sizes = [(kind, size) for kind in kinds for size in SIZES[kind]]
    return st.builds(lambda choice, seed: choice[0](seed, *choice[1]), st.sampled_from(sizes), seeds)


def optimisers() -> st.SearchStrategy[Any]:
    """Draws optax optimisers; always the same objects, so that nothing is traced again for being created again."""
    return st.sampled_from(list(OPTIMISERS.values()))


def schedules() -> st.SearchStrategy[Any]:
    """Draws learning rates as functions of the step; always the same objects."""
    return st.sampled_from(list(SCHEDULES.values()))


@st.composite
def hyperparameters(draw: st.DrawFn, size: int) -> Any:
    """Draws pytrees of `size` numbers: vectors, matrices and scalars in nested tuples, lists and dictionaries."""
    cuts = sorted(draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    trees: list[Any] = []
    for length in np.diff([0, *cuts, size]):
        shapes = [(length,), (length, 1)] + ([()] if length == 1 else [])
        trees.append(np.zeros(draw(st.sampled_from(shapes))))
    while len(trees) > 1:
        left, right = trees.pop(), trees.pop()
        trees.append(draw(st.sampled_from([(left, right), [left, right], {"a": left, "b": (right,)}])))
    return trees[0]


@dataclasses.dataclass(frozen=True)
class Example:
    """An example for a law: a problem with its seed and sizes, an optimiser and a number of steps."""

    problem: Callable[..., Case]
    seed: int
    sizes: tuple[int, ...]
    optimiser: str
    num_steps: int
    optimisers: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def inner(self) -> hg.AbstractInnerSolver:
        """The inner solver."""
        average = AVERAGES.get(self.optimiser)
        return hg.OptaxSolver(self.optimisers[self.optimiser], self.num_steps, average=average)

    @property
    def case(self) -> Case:
        """The problem and where to start."""
        return self.problem(self.seed, *self.sizes)

    def __str__(self) -> str:
        arguments = ", ".join(map(str, (self.seed, *self.sizes)))
        return f"{self.problem.__name__}({arguments}), {self.optimiser}, T = {self.num_steps}"


def seeds_of(example: Example, vary: bool) -> st.SearchStrategy[Example]:
    """Returns the same example with other seeds, if they are to vary."""
    return st.builds(dataclasses.replace, st.just(example), seed=seeds if vary else st.just(example.seed))


def simpler(example: Example, steps: Sequence[int]) -> st.SearchStrategy[Example]:
    """Draws examples of the same problem that may be smaller, with one of `steps`; shrinks to the smallest."""
    names = list(dict.fromkeys([next(iter(example.optimisers)), example.optimiser]))
    return st.builds(
        dataclasses.replace,
        st.just(example),
        optimiser=st.sampled_from(names),
        num_steps=st.sampled_from(steps),
        sizes=st.sampled_from(SIZES[example.problem]),
        seed=seeds,
    )
