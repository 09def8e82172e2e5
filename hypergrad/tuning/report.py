"""The report of `tune`: the choices, and their reasons."""

import itertools
from collections.abc import Sequence

import jax
import numpy as np

from ..ground.show import show
from .race import GROWTH, Choice, Rival


def report(
    choice: Choice, race: Sequence[Rival], winner: Rival, spent: int, planned: int, held: Sequence[str]
) -> tuple[str, ...]:
    """Returns sentences on the choices and their reasons, and on updates that were `planned` and not done.

    `held` are sentences on hyperparameters with a bound.
    """
    inner, state, history = choice.estimator.inner, winner.course.state, winner.course.history
    assert inner.average is not None  # `periods` sets it
    lines = [
        f"Trained {state.spent.iterations} updates for {spent} gradient equivalents in all, moving the hyperparameters "
        f"every {inner.num_steps} updates, {len(history)} times.{cut_short(int(state.spent.iterations), planned)}",
        f"Hypergradients reach back {choice.estimator.horizon} updates. The adjoint grew {choice.growth:.3g}-fold over "
        f"them in a trial; the limit is {GROWTH:g}.",
        f"The outer loss is that of weights averaged over about {1 / (1 - inner.average):.0f} updates: short horizons "
        "would else drive learning rates to zero.",
        *held,
    ]
    if len(race) > 1:
        lost = ", ".join(f"{rival.name} at {rival.loss:.4g}" for rival in race if rival is not winner)
        lines.append(f"Of {len(race)} starts {winner.name} went on. Given up, with their losses: {lost}.")
    steady = jax.tree.map(steadiness, history.hparams)
    lines.append(f"Net move over length of path, 1 where a hyperparameter moved steadily: {show(steady)}.")
    at = "on the holdout" if state.stale is not None else "outer"
    lines.append(f"The best {at} loss is {show(state.best.value)} at {show(state.best.hparams)}.")
    return tuple(lines)


def cut_short(done: int, planned: int) -> str:
    """Returns a sentence for a learning rate that falls with the number of updates."""
    return "" if done >= planned else f" A schedule over {planned} updates is not at its end: that takes more budget."


def on_momentum(paths: Sequence[str], memory: int | None) -> list[str]:
    """Returns a sentence for every momentum that is bounded."""
    return [
        f"{path} is a momentum, held where the optimiser remembers {memory} updates at most: a longer one overshoots "
        "after more updates than a hypergradient sees."
        for path in paths
    ]


def on_ruin(went_on: Sequence[Rival]) -> list[str]:
    """Returns a sentence for every start that gave way to the next; all of them went on after the race."""
    return [
        f"{rival.name} went on, and was given up after {rival.course.num_steps} moves for {after.name}: training "
        f"had lost nearly all that it had gained. Its best loss was {rival.loss:.4g}."
        for rival, after in itertools.pairwise(went_on)
    ]


def steadiness(course: np.ndarray) -> float:
    """Returns the mean net move over the mean length of the path, of hyperparameters of shape (moves, ...)."""
    length = float(np.mean(np.sum(np.abs(np.diff(course, axis=0)), axis=0)))
    return float(np.mean(np.abs(course[-1] - course[0]))) / length if length else 0.0
