"""Searches of hyperparameters that are asked for a trial and told its result, so that all are run by one loop."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna

from .space import Choices, Space, Unit


class Asked(NamedTuple):
    """A trial to make, with its hypergradient or without."""

    unit: Unit
    choices: Choices
    gradient: bool


class FinishedTrial(NamedTuple):
    """What it gave: None where it failed."""

    value: float | None
    gradient: Unit | None


class Search(Protocol):
    """Is told results of what it asked, in order: the same results lead to the same questions, so that a search that
    was interrupted is resumed by telling it again what is known."""

    def ask(self) -> Asked:
        """The next trial."""

    def tell(self, told: FinishedTrial) -> None:
        """Its result."""


class OptunaSearch:
    """Any sampler of Optuna over the whole space: everything in [-1, 1], widths, patience, activation, initial weights,
    optimiser. The first trial is `first`, the same for all searches.

    **Source**: Akiba et al. (2019); Bergstra et al. (2011) for TPE.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler, space: Space, ranges: "Ranges", first: Choices):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(sampler=sampler)
        self.space, self.ranges = space, ranges
        self.study.enqueue_trial(_flat(space.centre()) | ranges.flat(first))
        self.trial: optuna.trial.Trial | None = None

    def ask(self) -> Asked:
        """The sampler's suggestion."""
        self.trial = self.study.ask()
        unit = {
            name: np.reshape([self.trial.suggest_float(key, -1, 1) for key in _keys(name, value)], np.shape(value))
            for name, value in self.space.centre().items()
        }
        return Asked(unit, self.ranges.suggest(self.trial), gradient=False)

    def tell(self, told: FinishedTrial) -> None:
        """A trial that failed is told as one."""
        failed = optuna.trial.TrialState.FAIL if told.value is None else None
        assert self.trial is not None
        self.study.tell(self.trial, told.value, state=failed)


class Ranges(NamedTuple):
    """What `Choices` may be: widths `least_width` to that of the layer, patience 10 to 30 % of the updates."""

    least_width: int
    max_widths: tuple[int, ...]
    steps: int

    def suggest(self, trial: optuna.trial.Trial) -> Choices:
        """Choices of one trial."""
        widths = [trial.suggest_int(f"width_{i}", self.least_width, most) for i, most in enumerate(self.max_widths)]
        patience = trial.suggest_float("patience", 0.1, 0.3)
        flags = [trial.suggest_categorical(name, [False, True]) for name in ("sigmoid", "uniform", "nesterov")]
        return Choices(np.array(widths), self.updates(patience), *flags)

    def updates(self, fraction: float) -> int:
        """Patience in updates."""
        return max(1, round(fraction * self.steps))

    def flat(self, choices: Choices) -> dict[str, Any]:
        """As Optuna names them."""
        flags = {name: bool(getattr(choices, name)) for name in ("sigmoid", "uniform", "nesterov")}
        fraction = float(np.clip(choices.patience / self.steps, 0.1, 0.3))
        return {f"width_{i}": int(width) for i, width in enumerate(choices.widths)} | {"patience": fraction} | flags


class GradientSearch:
    """The best of the first `starts` trials of another search, then Adam on [-1, 1] along hypergradients from there, at
    the choices of that trial.

    A step that fails, or ends more than the share `tolerance` above the best value, is taken back and the rate halved:
    moments start anew at the best point.
    """

    def __init__(self, first: Search, starts: int, rate: float, tolerance: float = 0.02):
        self.first, self.starts, self.rate, self.tolerance = first, starts, rate, tolerance
        self.count, self.best = 0, np.inf
        self.asked: Asked | None = None
        self.best_point: Asked | None = None
        self.best_gradient: Unit | None = None
        self.state: Any = None

    def ask(self) -> Asked:
        """The start, or where the last step led."""
        if self.count < self.starts:
            self.asked = self.first.ask()
        elif self.count == self.starts and self.best_point is not None:
            self.asked = self.best_point._replace(gradient=True)
        assert self.asked is not None
        return self.asked

    def tell(self, told: FinishedTrial) -> None:
        """Move."""
        asked, started = self.asked, self.count >= self.starts
        assert asked is not None
        self.count += 1
        if told.value is not None and told.value <= self.best:
            self.best, self.best_point = told.value, asked
            self.best_gradient = told.gradient
        if not started:
            self.first.tell(told)
            self.best_point = self.best_point or asked
            return
        worse = told.value is None or told.gradient is None or told.value > self.best * (1 + self.tolerance)
        point, gradient = (self.best_point, self.best_gradient) if worse else (asked, told.gradient)
        if worse:
            self.rate, self.state = self.rate / 2, None
        assert point is not None
        self.asked = point._replace(unit=self._moved(point.unit, gradient), gradient=True)

    def _moved(self, unit: Unit, gradient: Unit | None) -> Unit:
        if gradient is None:
            return unit
        with jax.enable_x64(True):
            optimiser, unit = optax.adam(self.rate), jax.tree.map(jnp.asarray, unit)
            state = optimiser.init(unit) if self.state is None else self.state
            updates, self.state = optimiser.update(jax.tree.map(jnp.asarray, gradient), state, unit)
            moved = optax.tree.clip(optax.apply_updates(unit, updates), -1.0, 1.0)
            return jax.tree.map(np.asarray, moved)


def searches(
    space: Space, ranges: Ranges, first: Choices, starts: int, rate: float
) -> dict[str, Callable[[int], Search]]:
    """By name, each a function of a seed."""
    random = lambda seed: OptunaSearch(optuna.samplers.RandomSampler(seed=seed), space, ranges, first)
    tpe = lambda seed: OptunaSearch(optuna.samplers.TPESampler(seed=seed), space, ranges, first)
    return {"gradient": lambda seed: GradientSearch(random(seed), starts, rate), "random": random, "tpe": tpe}


def _keys(name: str, value: Any) -> list[str]:
    return [name + "".join(f"_{j}" for j in i) for i in np.ndindex(np.shape(value))]


def _flat(unit: Unit) -> dict[str, float]:
    return {
        key: float(v)
        for name, value in unit.items()
        for key, v in zip(_keys(name, value), np.ravel(value), strict=True)
    }
