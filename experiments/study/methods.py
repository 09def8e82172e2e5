"""The methods of the study, each with the one setting that is tuned for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg
from ensembles import evidence_log_variance

from ..common.contest import LOOKS, Method, Task, Tracker, by_search, by_trials, into, tree_parzen, uniform
from .settings import Setting

MethodName = Literal["random", "greedy", "drmad", "hoag", "reverse", "drmad_knots", "tpe", "em", "random_greedy"]
METHODS: tuple[MethodName, ...] = (
    *("random", "greedy", "drmad", "hoag", "reverse"),
    *("drmad_knots", "tpe", "em", "random_greedy"),
)
PUBLISHED: tuple[MethodName, ...] = ("random", "greedy", "drmad", "hoag")
RATES = (0.03, 0.1, 0.3, 1.0)  # of Adam on the log-variances
TRIALS = (1.0, 5.0, 10.0, 50.0)  # training of one trial, in published iterations: the last is all there are
EVERY = (1, 5, 10, 50)  # updates of the weights per closed-form step
KNOTS = 5
EXPLORATION = 0.2  # share of the budget that random_greedy searches with
LINEAR_SOLVER = hg.CG(10, damping=0.1)  # one-sample Hessians are indefinite


class Contestant(NamedTuple):
    """A method with one free setting."""

    values: tuple[float, ...]  # that are tried: four for every method
    usual: float
    make: Callable[[float], Method]


class ClosedForm(hg.AbstractEstimator):
    """h* = log(m² + s²), the best prior for the posterior at hand, after some training; the distance h - h* stands in
    for the hypergradient, so that a step of length one arrives there."""

    inner: hg.AbstractInnerSolver
    offset: Array

    def init(self, problem: hg.BilevelProblem, params: PyTree, hparams: PyTree) -> hg.InnerState:
        """The inner state to start from."""
        return self.inner.init(problem, params, hparams)

    @eqx.filter_jit
    def step(
        self, problem: hg.BilevelProblem, hparams: PyTree, state: hg.InnerState, key: Array
    ) -> tuple[hg.Estimate, hg.InnerState]:
        """Train on, then look where the best prior is."""
        end, solved = self.inner.solve(problem, hparams, state, key)
        value = problem.outer_loss(end.params, hparams, problem.valid, jax.random.fold_in(key, self.inner.num_steps))
        best = evidence_log_variance(end.params)
        away = jax.tree.map(lambda h, target: h - (target - self.offset), hparams, best)
        counts = hg.Counts(iterations=solved.iterations, inner_gradients=solved.gradients)
        return hg.Estimate(away, value, end.params, hg.Stats(counts)), end


def contestants(setting: Setting, start: PyTree) -> dict[MethodName, Contestant]:
    """Every method by name. Build once for all seeds: a search built anew compiles anew."""
    optimiser, outer = optax.adam(setting.inner_lr), optax.inject_hyperparams(optax.adam)(learning_rate=RATES[1])
    solver = lambda steps: hg.OptaxSolver(optimiser, steps)
    period, project = setting.period, into(setting.box)
    linear = LINEAR_SOLVER

    def gradient(estimator):
        search = hg.GradientSearch(estimator, outer, projection=project)
        steps = looks(setting, estimator.inner.num_steps)
        return Contestant(RATES, RATES[1], lambda rate: by_search(search, steps, current=True, rate=rate))

    def searching(method):
        length = lambda share: solver(max(1, round(share * setting.inner_steps)))
        return Contestant(TRIALS, 1.0, lambda share: method(length(share)))

    def closed_form(every):
        step = ClosedForm(solver(int(every)), jnp.asarray(setting.offset, jnp.float32))
        search = hg.GradientSearch(step, optax.sgd(1.0), projection=project)
        return by_search(search, looks(setting, int(every)), current=True)

    draw = uniform(start, setting.prior)
    random = lambda inner: by_search(hg.RandomSearch(inner, draw), 1, current=False)
    greedy = gradient(hg.Greedy(solver(1)))
    explorer = random(solver(setting.inner_steps))
    return {
        "random": searching(random),
        "greedy": greedy,
        "drmad": gradient(hg.DrMAD(solver(period), warm_start=True, check=None)),
        "hoag": gradient(hg.HOAG(solver(period), linear)),
        "reverse": gradient(hg.Reverse(solver(period), warm_start=True)),
        "drmad_knots": gradient(hg.DrMAD(solver(period), knots=min(KNOTS, period), warm_start=True, check=None)),
        "tpe": searching(lambda inner: by_trials(inner, tree_parzen)),
        "em": Contestant(EVERY, 10, closed_form),
        "random_greedy": Contestant(RATES, RATES[1], lambda rate: one_after_another(explorer, greedy.make(rate))),
    }


def looks(setting: Setting, steps: int) -> int:
    """Hyper-steps between two measurements."""
    return max(1, setting.updates // steps // LOOKS)


def one_after_another(first: Method, second: Method) -> Method:
    """Spend a share of the budget with one method and the rest with another, from the best that was found."""

    def method(task: Task, tracker: Tracker) -> None:
        amount: dict[str, Any] = {task.budget.unit: max(1, round(EXPLORATION * task.budget.amount))}
        first(replace(task, budget=hg.Budget(**amount)), tracker)
        params, hparams = tracker.best or (task.params, task.start)
        second(replace(task, params=params, start=hparams, spent=tracker.spent), tracker)

    return method
