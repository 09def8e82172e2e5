"""The methods that are compared."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

import hypergrad as hg

from ..common.contest import (
    LOOKS,
    Method,
    Task,
    Tracker,
    by_search,
    by_trials,
    full,
    into,
    tree_parzen,
    uniform,
    uniform_scalar,
)

BOX = (-10.0, 4.0)  # range of the log-variances, for every method
START = -3.0  # the middle of the box
SCALARS = 9  # grid of best_scalar


def best_scalar(inner: hg.AbstractInnerSolver) -> Method:
    """A grid of single log-variances, each trained straight through: not at equal budget, but a bound for one
    scalar."""

    @eqx.filter_jit
    def train(problem, params, hparams, key):
        one = lambda hparams: hg.evaluate(inner, problem, params, hparams, key)
        return eqx.filter_vmap(one)(hparams)

    def method(task: Task, tracker: Tracker) -> None:
        grid = jnp.linspace(*BOX, SCALARS)
        estimates = train(task.problem, task.params, jax.vmap(lambda value: full(task.weights, value))(grid), task.key)
        spent = jax.tree.map(lambda leaf: jnp.sum(leaf, dtype=leaf.dtype), estimates.stats.counts)
        for i in range(SCALARS):
            dynamic, static = eqx.partition(estimates.params, eqx.is_array)
            params = eqx.combine(jax.tree.map(lambda leaf, i=i: leaf[i], dynamic), static)
            tracker.look(params, full(task.weights, float(grid[i])), spent, estimates.stats.status[i])

    return method


def all_methods(config, weights: PyTree) -> dict[str, Method]:
    """Every method by name. Build once for all seeds: a method built anew compiles anew."""
    optimiser, outer = optax.adam(config.inner_lr), optax.adam(config.hyper_lr)
    solver = lambda steps: hg.OptaxSolver(optimiser, steps)
    timed = config.budget_unit == "seconds"
    expected = 200 * config.period if timed else int(config.budget)
    straight = 10 * config.trial_steps if timed else max(1, int(config.budget))

    def gradient(estimator):
        steps = max(1, expected // estimator.inner.num_steps // LOOKS)
        return by_search(hg.GradientSearch(estimator, outer, projection=into(BOX)), steps, current=True)

    linear_solver = hg.CG(config.cg_steps, damping=config.cg_damping)
    return {
        "greedy": gradient(hg.Greedy(solver(1))),
        "drmad": gradient(hg.DrMAD(solver(config.period), knots=config.knots, warm_start=True, check=None)),
        "hoag": gradient(hg.HOAG(solver(config.period), linear_solver)),
        "reverse": gradient(hg.Reverse(solver(config.period), warm_start=True)),
        "random": by_search(hg.RandomSearch(solver(config.trial_steps), uniform(weights, BOX)), 1, current=False),
        "random_scalar": by_trials(solver(config.trial_steps), uniform_scalar),
        "tpe": by_trials(solver(config.trial_steps), tree_parzen),
        "best_scalar": best_scalar(solver(straight)),
    }
