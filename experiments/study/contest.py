"""Methods that compete: each spends one budget on one problem, and its course is measured in the same way."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, SupportsInt

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, PyTree

import hypergrad as hg

from ..common.cells import Advance, ignore
from ..common.data import Splits
from .criteria import Criterion

MEASUREMENTS = 50  # of the criterion per run
COUNTS = ("iterations", "gradients", "hvps", "hyper_updates")


@dataclass(frozen=True)
class Task:
    """One repetition of a problem, with everything that a method starts from."""

    problem: hg.BilevelProblem
    params: PyTree
    weights: PyTree  # the tree that one hyperparameter per weight has
    start: PyTree  # log-variances that gradients start from; a prefix of `weights`, or broadcasting
    box: tuple[float, float]  # range of the log-variances, for every method
    criterion: Criterion
    budget: hg.Budget
    key: Array
    seed: int
    rows: Splits
    spent: hg.Counts = field(default_factory=hg.Counts)  # before the start, at the expense of the budget

    def layered(self, values: list[float]) -> PyTree:
        """Returns one log-variance per layer, copied to its weights."""
        layers = [full(layer, value) for layer, value in zip(self.weights.layers, values, strict=True)]
        return eqx.tree_at(lambda tree: tree.layers, self.weights, tuple(layers))


def full(weights: PyTree, value: ArrayLike) -> PyTree:
    """Returns the same log-variance for every weight."""
    return jax.tree.map(lambda weight: jnp.full_like(weight, value), weights)


def budget_of(unit: str, amount: float) -> hg.Budget:
    """Returns the budget of so many units."""
    amounts: dict[str, Any] = {unit: amount}
    return hg.Budget(**amounts)


@dataclass
class Tracker:
    """The course of one run: what it spent, the criterion at its candidates, and the best of them."""

    task: Task
    advance: Advance = ignore
    history: list[dict[str, float]] = field(default_factory=list)
    best: tuple[PyTree, PyTree] | None = None  # (trained, hyperparameters)
    value: float = float("inf")
    status: hg.Status = hg.Status.OK
    spent: hg.Counts = field(default_factory=hg.Counts)
    started: float = field(default_factory=time.monotonic)

    def record(self, candidate: tuple[PyTree, PyTree], spent: hg.Counts, status: Any) -> None:
        """Measures a candidate `(trained, hyperparameters)` after so much work."""
        self.spent, whole = spent, as_integers(spent)
        value = float(measure(self.task.criterion.evaluate, self.task.problem, *candidate))
        self.status |= hg.Status(int(np.bitwise_or.reduce(np.ravel(np.asarray(status)))))
        if value < self.value:
            self.value, self.best = value, candidate
        counts = {name: getattr(whole, name) for name in COUNTS}
        self.history.append(counts | {"seconds": self.seconds, "criterion": value, "best": self.value})
        self.advance(self.used(whole) / self.task.budget.amount)

    @property
    def seconds(self) -> float:
        """The time since the start, measurements included."""
        return time.monotonic() - self.started

    def used(self, spent: hg.Counts) -> float:
        """Returns what is spent, in the unit of the budget."""
        unit = self.task.budget.unit
        return self.seconds if unit == "seconds" else int(getattr(spent, unit))


def as_integers(counts: hg.Counts) -> hg.Counts:
    """Returns the counts as Python's integers, whose sums take no time."""
    return jax.tree.map(int, counts, is_leaf=lambda part: isinstance(part, SupportsInt))


Method = Callable[[Task, Tracker], None]


def compete(method: Method, task: Task, advance: Advance = ignore) -> tuple[Tracker, dict[str, Any]]:
    """Runs a method; returns its course, and its counts, seconds and status in the end."""
    tracker = Tracker(task, advance)
    method(task, tracker)
    last = {name: tracker.history[-1][name] for name in COUNTS}
    return tracker, last | {"seconds": round(tracker.seconds, 3), "status": tracker.status.name or "OK"}


def compile_method(method: Method, task: Task) -> float:
    """Runs a method for one iteration, so that its runs are timed without compilation; returns the seconds it took."""
    tracker = Tracker(replace(task, budget=hg.Budget(iterations=1)))
    method(tracker.task, tracker)
    return round(tracker.seconds, 3)


@eqx.filter_jit
def measure(evaluate: hg.problem.Loss, problem: hg.BilevelProblem, params: PyTree, hparams: PyTree) -> Array:
    """Returns the criterion of one candidate, with the same noise for all."""
    return evaluate(params, hparams, problem.valid, jax.random.key(0))


def status_of(record: hg.Record) -> Array:
    """Returns what the history of a run keeps here."""
    return record.stats.status


def indifferent(model: PyTree) -> Array:
    """Returns infinity for every model: a holdout that costs nothing, and under which no step is the best."""
    return jnp.full((), jnp.inf)


def by_search(search: hg.AbstractSearch, chunk: int, current: bool, rate: float | None = None) -> Method:
    """Returns a search of the library as a method, measured every `chunk` steps.

    The candidate is the current point, or the best that the search knows. Where it is the current one the search does
    not choose, because it would evaluate a random criterion again and again for a best that nobody reads. `rate` is the
    learning rate of the hyperparameters where the search's optimiser carries it in its state
    (`optax.inject_hyperparams`), so that one compilation serves all rates.
    """

    def method(task: Task, tracker: Tracker) -> None:
        state = search.init(task.problem, task.params, task.start)
        state = eqx.tree_at(lambda state: state.spent, state, task.spent)
        if rate is not None:
            where = lambda state: state.opt_state.hyperparams["learning_rate"]
            state = eqx.tree_at(where, state, jnp.full_like(where(state), rate))

        def record(state, steps):
            best = (state.best.params, state.best.hparams)
            tracker.record((state.model, state.hparams) if current else best, state.spent, steps.records)

        options: dict[str, Any] = {"key": task.key, "budget": task.budget, "chunk": chunk}
        options |= {"holdout": indifferent} if current else {}
        with contextlib.suppress(FloatingPointError):  # every step failed: the tracker has seen them all
            hg.run(search, task.problem, state, callback=record, keep=status_of, **options)

    return method


def by_trials(inner: hg.AbstractInnerSolver, propose: Callable[[Task], tuple[Any, Any, Any]]) -> Method:
    """Returns a black-box search as a method; it trains every trial from the same initial model.

    `propose` makes `(searcher, space, function from a trial's params to log-variances)` of a task. The candidate is
    the best trial so far.
    """

    def method(task: Task, tracker: Tracker) -> None:
        searcher, space, as_hparams = propose(task)
        spent, best, value, status = hg.Counts(), None, np.inf, None

        def train(trial: hg.trials.Trial, key: Array) -> hg.trials.Result:
            nonlocal spent, best, value, status
            hparams = as_hparams(trial.params)
            estimate = hg.evaluate(inner, task.problem, task.params, hparams, key)
            counts, status = estimate.stats.counts, estimate.stats.status
            spent, loss = spent + counts, float(estimate.value)
            if loss < value or best is None:
                value, best = loss, (estimate.params, hparams)
            return hg.trials.Result(loss, iterations=int(counts.iterations), gradients=int(counts.gradients))

        def record(state: hg.trials.SearcherState) -> bool:
            assert best is not None
            tracker.record(best, spent, status)
            return tracker.used(spent) >= task.budget.amount  # seconds of measurements count too

        options: dict[str, Any] = {"key": task.key, "budget": task.budget, "on_failure": "raise"}
        hg.trials.search_trials(searcher, space, train, callback=record, **options)

    return method


def tree_parzen(task: Task) -> tuple[Any, Any, Any]:
    """Returns Optuna's TPE over one log-variance per layer."""
    import optuna

    sampler = optuna.samplers.TPESampler(seed=task.seed)
    names = [f"layer_{i}" for i in range(len(task.weights.layers))]
    space = hg.trials.Space({name: hg.trials.Float(*task.box) for name in names})
    return hg.trials.Optuna(lambda _: sampler), space, lambda params: task.layered([params[name] for name in names])


def uniform_scalar(task: Task) -> tuple[Any, Any, Any]:
    """Returns random search over one log-variance for all weights."""
    draws = np.random.default_rng(task.seed).uniform(*task.box, 1000)
    listed = hg.trials.FixedList([{"all": float(draw)} for draw in draws], then=hg.trials.Random())
    return (
        listed,
        hg.trials.Space({"all": hg.trials.Float(*task.box)}),
        lambda params: full(task.weights, params["all"]),
    )


def uniform(hparams: PyTree, box: tuple[float, float]) -> Callable[[Array], PyTree]:
    """Returns a prior that draws every number of `hparams` by itself, uniform in the box."""

    def prior(key):
        leaves, treedef = jax.tree.flatten(hparams)
        keys = jax.random.split(key, len(leaves))
        draws = [jax.random.uniform(key, leaf.shape, leaf.dtype, *box) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, draws)

    return prior


def into(box: tuple[float, float]) -> Callable[[PyTree], PyTree]:
    """Returns a projection that clips to the box that random search draws from."""
    return lambda hparams: optax.tree.clip(hparams, *box)
