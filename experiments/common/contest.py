"""Methods that compete: each spends one budget on one problem and reports what it saw."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, PyTree

import hypergrad as hg

LOOKS = 50  # measurements of the criterion per run


@dataclass(frozen=True)
class Task:
    """One seed's problem: what every method starts from."""

    problem: hg.BilevelProblem
    params: PyTree
    weights: PyTree  # the tree that one hyperparameter per weight has
    start: PyTree  # hyperparameters that gradients start from; log-variances as a prefix of `weights`, or broadcasting
    box: tuple[float, float]  # range of the log-variances, for every method
    criterion: Any  # has `evaluate(params, hparams, valid, key)`, the criterion measured accurately
    budget: hg.Budget
    key: Array
    seed: int
    spent: hg.Counts = field(default_factory=hg.Counts)  # before: it counts against the budget

    def layered(self, values: list[float]) -> PyTree:
        """One log-variance per layer, copied to its weights."""
        layers = [full(layer, value) for layer, value in zip(self.weights.layers, values, strict=True)]
        return eqx.tree_at(lambda tree: tree.layers, self.weights, tuple(layers))


def full(weights: PyTree, value: ArrayLike) -> PyTree:
    """The same log-variance for every weight."""
    return jax.tree.map(lambda weight: jnp.full_like(weight, value), weights)


@dataclass
class Tracker:
    """Measures the criterion the same way for every method, and keeps the best."""

    task: Task
    advance: Callable[[float], Any]  # told the share of the budget spent since
    history: list[dict[str, float]] = field(default_factory=list)
    best: tuple[PyTree, PyTree] | None = None
    value: float = float("inf")
    status: hg.Status = hg.Status.OK
    spent: hg.Counts = field(default_factory=hg.Counts)
    share: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def look(self, params: PyTree, hparams: PyTree, spent: hg.Counts, status: Any) -> None:
        """Measure one candidate after so much work."""
        self.spent = spent
        value = float(measure(self.task.criterion.evaluate, self.task.problem, params, hparams))
        self.status |= hg.Status(int(np.bitwise_or.reduce(np.ravel(np.asarray(status)))))
        if value < self.value:
            self.value, self.best = value, (params, hparams)
        counts = {name: int(getattr(spent, name)) for name in ("iterations", "gradients", "hvps", "hyper_updates")}
        self.history.append(counts | {"seconds": self.seconds, "criterion": value, "best": self.value})
        used = self.seconds if self.task.budget.unit == "seconds" else counts[self.task.budget.unit]
        share = min(1.0, used / self.task.budget.amount)
        self.advance(share - self.share)
        self.share = share

    @property
    def seconds(self) -> float:
        """Since the start, measurements included."""
        return time.monotonic() - self.started

    def left(self, spent: hg.Counts) -> bool:
        """Whether anything of the budget is left."""
        unit, amount = self.task.budget.unit, self.task.budget.amount
        return (self.seconds if unit == "seconds" else int(getattr(spent, unit))) < amount


def status_of(record: hg.Record) -> Array:
    """What the history of a run keeps here."""
    return record.stats.status


@eqx.filter_jit
def measure(evaluate: Any, problem: hg.BilevelProblem, params: PyTree, hparams: PyTree) -> Array:
    """The criterion of one candidate, with the same noise for all."""
    return evaluate(params, hparams, problem.valid, jax.random.key(0))


Method = Callable[[Task, Tracker], None]


def compile_method(method: Method, task: Task) -> float:
    """Run a method for one iteration, so that its runs are timed without compilation; returns the seconds it took."""
    tracker = Tracker(replace(task, budget=hg.Budget(iterations=1)), lambda share: None)
    method(tracker.task, tracker)
    return round(tracker.seconds, 3)


def by_search(search: hg.AbstractSearch, steps_per_look: int, current: bool, rate: float | None = None) -> Method:
    """A search of the library; looks at its current point, or at the best it knows of.

    `rate` is the learning rate of the hyperparameters where the search's optimiser carries it in its state
    (`optax.inject_hyperparams`), so that one compilation serves all rates.
    """

    def method(task: Task, tracker: Tracker) -> None:
        state = search.init(task.problem, task.params, task.start)
        state = eqx.tree_at(lambda state: state.spent, state, task.spent)
        if rate is not None:
            place = lambda state: state.opt_state.hyperparams["learning_rate"]
            state = eqx.tree_at(place, state, jnp.full_like(place(state), rate))

        def look(state, steps):
            found = (state.model, state.hparams) if current else (state.best.params, state.best.hparams)
            tracker.look(*found, state.spent, steps.records)

        with contextlib.suppress(FloatingPointError):  # the tracker has seen all steps
            hg.run(
                search,
                task.problem,
                state,
                key=task.key,
                budget=task.budget,
                chunk=steps_per_look,
                callback=look,
                keep=status_of,
            )

    return method


def by_trials(inner: hg.AbstractInnerSolver, propose: Callable[[Task], Any]) -> Method:
    """A black-box search with ask and tell: trains every proposal from the start."""

    def method(task: Task, tracker: Tracker) -> None:
        sampler, spent, best, number = propose(task), hg.Counts(), np.inf, 0
        while tracker.left(spent):
            hparams, tell = sampler()
            key = jax.random.fold_in(task.key, number)
            estimate = hg.evaluate(inner, task.problem, task.params, hparams, key)
            spent, number = spent + estimate.stats.counts, number + 1
            tell(float(estimate.value))
            if estimate.value < best or number == 1:
                best, found = float(estimate.value), (estimate.params, hparams)
            tracker.look(*found, spent, estimate.stats.status)

    return method


def tree_parzen(task: Task):
    """Optuna's TPE over one log-variance per layer."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=task.seed))
    layers: dict[str, Any] = {
        f"layer_{i}": optuna.distributions.FloatDistribution(*task.box) for i in range(len(task.weights.layers))
    }

    def ask():
        trial = study.ask(layers)

        def tell(value):
            if np.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)

        return task.layered([trial.params[name] for name in layers]), tell

    return ask


def uniform_scalar(task: Task):
    """One log-variance for all weights, uniform in the box."""
    draw = np.random.default_rng(task.seed)
    return lambda: (full(task.weights, float(draw.uniform(*task.box))), lambda value: None)


def uniform(hparams: PyTree, box: tuple[float, float]) -> Callable[[Array], PyTree]:
    """A prior that draws every number of `hparams` by itself, uniform in the box."""

    def prior(key):
        leaves, treedef = jax.tree.flatten(hparams)
        keys = jax.random.split(key, len(leaves))
        draws = [jax.random.uniform(key, leaf.shape, leaf.dtype, *box) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, draws)

    return prior


def into(box: tuple[float, float]) -> Callable[[PyTree], PyTree]:
    """A projection that clips to the box that random search draws from."""
    return lambda hparams: optax.tree.clip(hparams, *box)
