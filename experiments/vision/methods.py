"""Methods that compete: each reads the training rows equally often, from the same start."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg

from ..common.directed import Directed
from ..common.follow import value_of
from .images import CLASSES
from .model import BOX, DEFAULTS, RATE_BOX, Kind, hparams_of, inner_loss, optimiser, outer_loss, values_of

PERIODS = 25  # times that plain training looks at the validation rows
PERIOD, HORIZON = 25, 5  # updates between two moves of the few hyperparameters, and the last that are differentiated
AVERAGE = 0.9
WEIGHTING_HORIZON = 2  # of the two hyperparameters that weigh rows by their loss
THRESHOLD = math.log(CLASSES)  # of the loss from which a row counts less than half, at first: that of even classes
OUTER, STAY = optax.adam(0.2), optax.sgd(0.0)
SHARE = 0.6  # of the budget, to learn weights of examples before new weights of the network are trained
STEP = 1.0  # root mean square of a move of the log-odds of examples


@dataclasses.dataclass
class Task:
    """A problem with its start and budget, and the course of the method that runs on it."""

    kind: Kind
    model: PyTree
    train: Any
    valid: Any
    right: np.ndarray  # indices of the training rows with right labels
    epochs: float
    batch: int
    key: Array
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    read: int = 0  # rows that were read before

    @property
    def updates(self) -> int:
        """Updates of plain training within the budget."""
        return round(self.epochs * len(self.train.y) / self.batch)

    def problem(self, train: Any = None, valid: Any = None) -> hg.BilevelProblem:
        """Returns the problem on these rows, by default all."""
        train, valid = self.train if train is None else train, self.valid if valid is None else valid
        return hg.BilevelProblem(inner_loss, outer_loss, hg.Batches(train, self.batch), valid)

    @property
    def defaults(self) -> dict[str, Any]:
        """The start of the few hyperparameters."""
        return hparams_of(self.model[0], DEFAULTS[self.kind])

    @property
    def weighted(self) -> dict[str, Any]:
        """The same, with the log-odds of one weight per training row, all even."""
        return self.defaults | {"example": jnp.zeros(len(self.train.y))}

    @property
    def gated(self) -> dict[str, Any]:
        """The few hyperparameters, with weights by loss, half at the loss of even classes."""
        return self.defaults | {"weighting": {"threshold": jnp.float32(THRESHOLD), "log_slope": jnp.float32(0)}}

    def record(self, rows: int, value: float, hparams: PyTree) -> None:
        """Adds the best loss so far to the history, and the hyperparameters of the moment."""
        epochs = (self.read + rows) / len(self.train.y)
        self.history.append({"epochs": epochs, "valid_loss": value} | values_of(hparams))


class Result(NamedTuple):
    """The best model by the validation rows, its hyperparameters and loss there, and what was spent."""

    params: PyTree
    hparams: PyTree
    value: float
    rows: int
    updates: int


Method = Callable[[Task], Result]
Make = Callable[[Kind, int, int], hg.GradientSearch]


@cache
def plain(kind: Kind, updates: int, epoch: int) -> hg.GradientSearch:
    """Returns training at the start, in which the outer loss is measured now and then."""
    inner = hg.OptaxSolver(optimiser(kind, updates), max(updates // PERIODS, 1))
    return hg.GradientSearch(Directed(inner, lambda params, hparams: optax.tree.zeros_like(hparams)), STAY)


def online_cost(horizon: int) -> float:
    """Returns the gradients for each update, where the last `horizon` of every `PERIOD` are differentiated."""
    return 1 + 2 * horizon / PERIOD


def short_horizon(outer: optax.GradientTransformation, horizon: int = HORIZON) -> Make:
    """Returns training that moves hyperparameters along short horizons, at averaged weights."""

    @cache
    def make(kind: Kind, updates: int, epoch: int) -> hg.GradientSearch:
        inner = hg.OptaxSolver(optimiser(kind, updates), PERIOD, average=AVERAGE)
        return hg.GradientSearch(hg.Reverse(inner, horizon=horizon, warm_start=True, check=None), outer)

    return make


def apart(name: str, one: optax.GradientTransformation, few: optax.GradientTransformation) -> Any:
    """Returns an optimiser that moves the hyperparameter `name` by `one`, and the others by `few`."""
    group = lambda hparams: {key: "one" if key == name else "few" for key in hparams}
    return optax.multi_transform({"one": one, "few": few}, group)


def equal_moves(size: float) -> optax.GradientTransformation:
    """Returns gradient descent whose updates all have the root mean square `size`.

    Adam would move every example equally far. Here one whose hypergradient is small stays. A norm of the update rather
    than of the first bounds the moves of an epoch in which the adjoint grows.
    """
    scale = lambda updates, params: jax.tree.map(lambda leaf: -size * leaf.size**0.5 * leaf, updates)
    return optax.chain(optax.normalize_by_update_norm(), optax.stateless(scale))


def cleaning(few: optax.GradientTransformation) -> Make:
    """Returns training that moves the weights of examples along all updates of an epoch, and the others by `few`."""
    outer = apart("example", equal_moves(STEP), few)

    @cache
    def make(kind: Kind, updates: int, epoch: int) -> hg.GradientSearch:
        inner = hg.OptaxSolver(optimiser(kind, updates), epoch)
        return hg.GradientSearch(hg.Reverse(inner, warm_start=True, check=None), outer)

    return make


def by_search(
    make: Make,
    cost: float = 1.0,
    start: Callable[[Task], PyTree] = lambda task: task.defaults,
    rows: Callable[[Task], Any] = lambda task: task.train,
) -> Method:
    """Returns a search as a method.

    **Arguments**

    - `make`: the search, from the kind, the updates in all, and those of an epoch.
    - `cost`: gradients for each update, above 1 where hyperparameters move. There half of the validation rows choose
      the best step.
    - `start`: the hyperparameters to start from. `rows`: those to train on.
    """

    def method(task: Task) -> Result:
        train, options = rows(task), {}  # type: Any, dict[str, Any]
        valid, half = task.valid, len(task.valid.y) // 2
        if cost > 1:  # half chooses, because hyperparameters can overfit the other
            valid, options["holdout"] = valid.take(np.arange(half)), valid.take(np.arange(half, 2 * half))
        problem = task.problem(train, valid)
        search = make(task.kind, round(task.updates / cost), len(train.y) // task.batch)
        state = search.init(problem, task.model, start(task))
        limit = hg.Budget(epochs=task.epochs * len(task.train.y) / len(train.y))

        def measure(state: hg.SearchState, _: hg.History) -> None:
            task.record(int(state.spent.rows), float(state.best.value), state.hparams)

        with contextlib.suppress(FloatingPointError):  # no step was finite
            options |= {"budget": limit, "callback": measure, "keep": value_of}
            state, _ = hg.run(search, problem, state, key=task.key, **options)
        best, spent = state.best, state.spent
        return Result(best.params, best.hparams, float(best.value), int(spent.rows), int(spent.iterations))

    return method


def then_anew(learn: Method, share: float) -> Method:
    """Returns a method that learns for a share of the budget, and then trains new weights at what it has learned."""

    def method(task: Task) -> Result:
        learned = learn(dataclasses.replace(task, epochs=share * task.epochs))
        left = task.epochs - learned.rows / len(task.train.y)
        rest = dataclasses.replace(task, epochs=left, read=learned.rows, key=jax.random.fold_in(task.key, 0))
        found = by_search(plain, start=lambda _: learned.hparams)(rest)
        return found._replace(rows=learned.rows + found.rows, updates=learned.updates + found.updates)

    return method


def tpe(share: float) -> Method:
    """Returns Optuna's TPE over one decay, rate, momentum, smoothing and augmentation; the first trial is the start.

    Every trial has this share of the budget.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def method(task: Task) -> Result:
        updates, start = max(round(share * task.updates), 1), DEFAULTS[task.kind]
        solver, problem = hg.OptaxSolver(optimiser(task.kind, updates), updates), task.problem()
        boxes = {name: BOX[name] for name in start if name in BOX} | {"rate": RATE_BOX[task.kind]}
        space = {name: hg.trials.Float(*box, log=name != "momentum") for name, box in boxes.items()}
        sampler = lambda _: optuna.samplers.TPESampler(seed=int(jax.random.randint(task.key, (), 0, 2**31 - 1)))
        searcher = hg.trials.FixedList([start], then=hg.trials.Optuna(sampler))
        best = Result(task.model, task.defaults, math.inf, 0, 0)

        def train(trial: hg.trials.Trial, key: Array) -> hg.trials.Result:
            nonlocal best
            hparams = hparams_of(task.model[0], trial.params)
            found = hg.evaluate(solver, problem, task.model, hparams, key)
            value, rows = float(found.value), best.rows + updates * task.batch
            if value < best.value:
                best = Result(found.params, hparams, value, 0, best.updates)
            best = best._replace(rows=rows, updates=best.updates + updates)
            task.record(rows, best.value, best.hparams)
            return hg.trials.Result(value, gradients=updates)

        number = max(round(1 / share), 1)
        hg.trials.search_trials(searcher, hg.trials.Space(space), train, key=task.key, num_trials=number)
        return best

    return method


def tune(task: Task) -> Result:
    """Calls `hg.tune` with its defaults, on a cosine over the updates that it can make."""
    updates = round(task.updates / 1.2)
    solver, rows = hg.OptaxSolver(optimiser(task.kind, updates), updates), 0

    def measure(state: hg.SearchState, history: hg.History) -> None:
        nonlocal rows
        rows += int(np.sum(history.stats.counts.inner_equivalents)) * task.batch
        task.record(rows, float(state.best.value), state.hparams)

    start = task.defaults
    found = hg.tune(solver, task.problem(), task.model, start, key=task.key, budget=task.updates, callback=measure)
    return Result(found.params, found.hparams, float(found.value), rows, int(found.state.spent.iterations))


METHODS: dict[str, Method] = {
    "oracle": by_search(plain, rows=lambda task: task.train.take(task.right)),
    "validation rows": by_search(plain, rows=lambda task: task.valid),
    "plain": by_search(plain),
    "tpe, 10 % trials": tpe(0.1),
    "tpe, 25 % trials": tpe(0.25),
    "online": by_search(short_horizon(OUTER), online_cost(HORIZON)),
    "tune": tune,
    "weights by loss": by_search(
        short_horizon(apart("weighting", OUTER, STAY), WEIGHTING_HORIZON),
        online_cost(WEIGHTING_HORIZON),
        lambda task: task.gated,
    ),
    "by loss and all": by_search(short_horizon(OUTER), online_cost(HORIZON), lambda task: task.gated),
    "example weights": then_anew(by_search(cleaning(STAY), 3.0, lambda task: task.weighted), SHARE),
    "weights and all": then_anew(by_search(cleaning(OUTER), 3.0, lambda task: task.weighted), SHARE),
}
