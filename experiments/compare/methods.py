"""The methods that are compared."""

from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import hypergrad as hg
from ensembles import replica

from ..study.contest import Method, Task, Tracker, by_search, by_trials, full, tree_parzen, uniform, uniform_scalar
from ..study.methods import by_gradient, estimators, plain
from ..study.settings import Setting

MethodName = Literal["greedy", "drmad", "hoag", "reverse", "random", "random_scalar", "tpe", "plain", "best_scalar"]
ALL: tuple[MethodName, ...] = get_args(MethodName)
SCALARS = 9  # grid of best_scalar


def best_scalar(inner: hg.AbstractInnerSolver) -> Method:
    """Returns a grid of single log-variances, each trained straight through.

    Its budget is larger than that of the others: it bounds what one scalar can do.
    """

    @eqx.filter_jit
    def train(problem, params, hparams, key):
        return eqx.filter_vmap(lambda hparams: hg.evaluate(inner, problem, params, hparams, key))(hparams)

    def method(task: Task, tracker: Tracker) -> None:
        grid = jnp.linspace(*task.box, SCALARS)
        estimates = train(task.problem, task.params, jax.vmap(lambda value: full(task.weights, value))(grid), task.key)
        spent = jax.tree.map(lambda leaf: jnp.sum(leaf, dtype=leaf.dtype), estimates.stats.counts)
        for i, value in enumerate(grid):
            candidate = (replica(estimates.params, i), full(task.weights, float(value)))
            tracker.record(candidate, spent, estimates.stats.status[i])

    return method


def methods(setting: Setting, hyper_lr: float, trial_steps: int, straight: int) -> dict[MethodName, Method]:
    """Returns every method by name.

    `trial_steps` is the training of one trial, `straight` that of best_scalar. Make the methods once for all seeds: a
    method that is made anew compiles anew.
    """
    adam, trial = optax.adam(hyper_lr), setting.training(trial_steps)
    draw = uniform(setting.weights, setting.prior)
    by_name: dict[MethodName, Method] = {
        "random": by_search(hg.RandomSearch(trial, draw), 1, current=False),
        "random_scalar": by_trials(trial, uniform_scalar),
        "tpe": by_trials(trial, tree_parzen),
        "plain": plain(setting),
        "best_scalar": best_scalar(setting.training(straight)),
    }
    climbers = {name: by_gradient(setting, estimator, adam)() for name, estimator in estimators(setting).items()}
    return {name: (by_name | climbers)[name] for name in ALL}
