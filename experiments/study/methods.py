"""The methods of the study, each with the one setting that is tuned for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import optax
from jaxtyping import PyTree

import hypergrad as hg
from ensembles import evidence_log_variance

from ..common.directed import Directed, standing
from .contest import MEASUREMENTS, Method, Task, Tracker, budget_of, by_search, by_trials, into, tree_parzen, uniform
from .settings import Setting

MethodName = Literal[
    "random", "greedy", "drmad", "hoag", "reverse", "drmad_knots", "tpe", "em", "random_greedy", "plain"
]
METHODS: tuple[MethodName, ...] = (
    *("random", "greedy", "drmad", "hoag", "reverse"),
    *("drmad_knots", "tpe", "em", "random_greedy", "plain"),
)
PUBLISHED: tuple[MethodName, ...] = ("random", "greedy", "drmad", "hoag")
RATES = (0.03, 0.1, 0.3, 1.0)  # of Adam on the log-variances
TRIALS = (0.02, 0.1, 0.2, 1.0)  # training of one trial, as a share of the budget
EVERY = (1, 5, 10, 50)  # updates of the weights per closed-form step
KNOTS = 5
EXPLORATION = 0.2  # share of the budget that random_greedy searches with


class Contestant(NamedTuple):
    """A method with one free setting, or none."""

    values: tuple[float, ...]  # four that are tried, for every method with a setting
    usual: float
    make: Callable[[float], Method]


def closed_form(inner: hg.AbstractInnerSolver, offset: Any) -> Directed:
    """Returns training towards the best prior for the posterior at hand, h* = log(m² + s²).

    The distance h - h* stands in for the hypergradient, so that a step of length one arrives there.
    """

    def distance(posterior: PyTree, hparams: PyTree) -> PyTree:
        best = evidence_log_variance(posterior)
        return jax.tree.map(lambda h, target: h - (target - offset), hparams, best)

    return Directed(inner, distance)


def estimators(setting: Setting) -> dict[MethodName, Any]:
    """Returns the hypergradients that are compared, by the name of their method."""
    short = setting.training(setting.period)
    return {
        "greedy": hg.Greedy(setting.training(1)),
        "drmad": hg.DrMAD(short, knots=setting.knots, warm_start=True, check=None),
        "hoag": hg.HOAG(short, setting.linear_solver),
        "reverse": hg.Reverse(short, warm_start=True),
    }


def plain(setting: Setting) -> Method:
    """Returns plain training at the start for the whole budget: the control of every comparison."""
    chunk = setting.chunk(setting.period, MEASUREMENTS)
    return by_search(standing(setting.training(setting.period)), chunk, current=True)


def by_gradient(setting: Setting, estimator: Any, rates: optax.GradientTransformation) -> Callable[..., Method]:
    """Returns a function from a rate, or `None` where `rates` has a fixed one, to the search along hypergradients."""
    search = hg.GradientSearch(estimator, rates, projection=into(setting.box))
    chunk = setting.chunk(estimator.inner.num_steps, MEASUREMENTS)
    return lambda rate=None: by_search(search, chunk, current=True, rate=rate)


def contestants(setting: Setting, start: PyTree) -> dict[MethodName, Contestant]:
    """Returns every method by name, for hyperparameters like `start`.

    Make them once for all seeds: a search that is made anew compiles anew.
    """
    rates = optax.inject_hyperparams(optax.adam)(learning_rate=RATES[1])
    draw = uniform(start, setting.prior)
    random = lambda inner: by_search(hg.RandomSearch(inner, draw), 1, current=False)
    explorer = random(setting.training(setting.inner_steps))
    several = hg.DrMAD(setting.training(setting.period), knots=min(KNOTS, setting.period), warm_start=True, check=None)
    climbers = {
        name: by_gradient(setting, estimator, rates)
        for name, estimator in (estimators(setting) | {"drmad_knots": several}).items()
    }

    def searching(method):
        length = lambda share: setting.training(max(1, int(share * setting.updates)))
        return Contestant(TRIALS, TRIALS[0], lambda share: method(length(share)))

    def expectation_maximisation(every):
        offset = 0.0 if setting.offset is None else setting.offset
        return by_gradient(setting, closed_form(setting.training(int(every)), offset), optax.sgd(1.0))()

    climbers["random_greedy"] = lambda rate: one_after_another(explorer, climbers["greedy"](rate))
    return {
        "random": searching(random),
        "tpe": searching(lambda inner: by_trials(inner, tree_parzen)),
        "em": Contestant(EVERY, 10, expectation_maximisation),
        "plain": Contestant((0.0,), 0.0, lambda _: plain(setting)),
        **{name: Contestant(RATES, RATES[1], make) for name, make in climbers.items()},
    }


def one_after_another(first: Method, second: Method) -> Method:
    """Returns a method that spends a share of the budget with one method and the rest with another, from the best."""

    def method(task: Task, tracker: Tracker) -> None:
        amount = max(1, round(EXPLORATION * task.budget.amount))
        first(replace(task, budget=budget_of(task.budget.unit, amount)), tracker)
        params, hparams = tracker.best or (task.params, task.start)
        second(replace(task, params=params, start=hparams, spent=tracker.spent), tracker)

    return method
