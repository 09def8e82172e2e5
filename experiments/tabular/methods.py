"""Methods that compete: each spends one budget of gradient equivalents from one start."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg

from ..common.directed import standing
from ..common.follow import value_of
from .criteria import Pose, evidence_bound, folds, on_validation, training_loss
from .model import BOX, GRID, adam, hparams_of, on_test
from .task import Task

PERIOD, HORIZON = 100, 10  # updates between two moves of λ, and the last of them that are differentiated
ONLINE = hg.Reverse(hg.OptaxSolver(adam, PERIOD), horizon=HORIZON, warm_start=True, check=None)
PLAIN = standing(hg.OptaxSolver(adam, PERIOD))
LONG = hg.Reverse(hg.OptaxSolver(adam, 10 * PERIOD), horizon=PERIOD, warm_start=True, check=None)
STRATEGIES = hg.PES(hg.OptaxSolver(adam, 10_000 * PERIOD), PERIOD, num_pairs=2, sigma=0.1)  # never begins again
OUTER, COLD_OUTER = optax.adam(0.2), optax.adam(0.3)
AVERAGE = 1 - 2 / PERIOD  # of the weights
SHRINKAGE = 0.05  # of the way to the mean of a layer, at every move
GUARDED = hg.GradientSearch(ONLINE, OUTER, projection=hg.projections.shrink_to_mean(SHRINKAGE))
AVERAGED = hg.Reverse(hg.OptaxSolver(adam, PERIOD, average=AVERAGE), horizon=HORIZON, warm_start=True, check=None)
RATES = optax.partition(
    {"learn": OUTER, "stand": optax.set_to_zero()}, {"log_decay": "stand", "log_rate": "learn", "logit_b1": "learn"}
)
BY_LAYER = on_validation()
MEASUREMENTS = 20  # of the test error per run


def fixed(task: Task) -> list[dict[str, Any]]:
    """Returns what plain training for the whole budget comes to at every setting of a grid, all in one program."""
    problem, steps = task.problem(), task.budget // PERIOD
    settings = [hparams_of(task.model, setting) for setting in GRID]

    def train(hparams: PyTree) -> hg.Best:
        state = eqx.tree_at(lambda s: s.hparams, first, hparams)
        step = lambda state, key: (PLAIN.step(problem, state, key)[0], None)
        return jax.lax.scan(step, state, jax.vmap(jax.random.fold_in, (None, 0))(task.key, jnp.arange(steps)))[0].best

    first = PLAIN.init(problem, task.model, settings[0])
    best = eqx.filter_jit(jax.vmap(train))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *settings))
    at = lambda place: jax.tree.map(lambda leaf: leaf[place] if eqx.is_array(leaf) else leaf, best).params
    losses = np.asarray(best.value, float)
    return [
        setting | on_test(at(place), task.table) | {"valid_loss": losses[place]} for place, setting in enumerate(GRID)
    ]


Method = Callable[[Task], tuple[eqx.nn.MLP, PyTree, int]]


def by_run(search: hg.GradientSearch, pose: Pose = BY_LAYER) -> Method:
    """Returns a search of the library as a method; `pose` makes its problem of a task."""

    def method(task: Task) -> tuple[eqx.nn.MLP, PyTree, int]:
        posed = pose(task)
        state, every = search.init(posed.problem, posed.params, posed.hparams), task.budget // MEASUREMENTS
        spent = lambda state: posed.networks * int(state.spent.gradients)

        def measure(state: hg.SearchState, _: hg.History) -> None:
            if spent(state) >= (len(task.history) + 1) * every:
                task.record(posed.predictor(state.best.params), spent(state))

        options: dict[str, Any] = {
            "holdout": posed.holdout,
            "budget": hg.Budget(gradients=task.budget // posed.networks),
        }
        with contextlib.suppress(FloatingPointError):  # no step was finite
            state, _ = hg.run(
                search, posed.problem, state, key=task.key, chunk=5, callback=measure, keep=value_of, **options
            )
        return posed.predictor(state.best.params), state.best.hparams, spent(state)

    return method


def cold(share: float) -> Method:
    """Returns whole runs from new weights, each with this share of the budget, differentiated exactly."""

    def method(task: Task) -> tuple[eqx.nn.MLP, PyTree, int]:
        steps = max(int(share * task.budget), 1)
        search = hg.GradientSearch(hg.Reverse(hg.OptaxSolver(adam, steps), checkpoints="sqrt"), COLD_OUTER)
        return by_run(search)(task)

    return method


def tpe(share: float) -> Method:
    """Returns Optuna's TPE over one decay per layer, rate and momentum; the first trial is the start."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def method(task: Task) -> tuple[eqx.nn.MLP, PyTree, int]:
        steps = max(int(share * task.budget), 1)
        solver, problem = hg.OptaxSolver(adam, steps), task.problem()
        layers = [f"log_decay_{n}" for n in range(len(task.model.layers))]
        space = {name: hg.trials.Float(*BOX["decay"]) for name in layers}
        space |= {"rate": hg.trials.Float(*BOX["rate"], log=True), "b1": hg.trials.Float(*BOX["b1"])}
        inside = {name: float(np.clip(value, *BOX[name])) for name, value in task.start.items()}
        first = dict.fromkeys(layers, inside["decay"]) | {"rate": inside["rate"], "b1": inside["b1"]}
        sampler = lambda _: optuna.samplers.TPESampler(seed=int(jax.random.randint(task.key, (), 0, 2**31 - 1)))
        searcher = hg.trials.FixedList([first], then=hg.trials.Optuna(sampler))
        best: tuple[Any, ...] = (task.model, task.hparams(), math.inf)
        spent = 0

        def train(trial: hg.trials.Trial, key: Array) -> hg.trials.Result:
            nonlocal best, spent
            found = trial.params
            hparams = hparams_of(task.model, {"decay": 0.0, "rate": found["rate"], "b1": found["b1"]})
            hparams["log_decay"] = [jnp.float32(found[name]) for name in layers]
            estimate = hg.evaluate(solver, problem, task.model, hparams, key)
            spent += steps
            if (value := float(estimate.value)) < best[2]:
                best = estimate.params, hparams, value
            task.record(best[0], spent)
            return hg.trials.Result(value, gradients=steps)

        hg.trials.search_trials(
            searcher, hg.trials.Space(space), train, key=task.key, num_trials=max(round(1 / share), 1)
        )
        return best[0], best[1], spent

    return method


def tuned(**own: Any) -> Method:
    """Returns `hg.tune` as a method, with options of its own."""

    def method(task: Task) -> tuple[eqx.nn.MLP, PyTree, int]:
        spent, best = 0, None  # type: int, hg.Best | None
        options: dict[str, Any] = {"key": task.key, "budget": task.budget} | own

        def measure(state: hg.SearchState, history: hg.History) -> None:
            nonlocal spent, best
            spent += int(np.sum(history.stats.counts.gradients))
            if best is None or state.best.value < best.value:  # of all starts
                best = state.best
            if spent >= (len(task.history) + 1) * task.budget // MEASUREMENTS:
                task.record(best.params, spent)

        solver = hg.OptaxSolver(adam, task.budget)
        result = hg.tune(solver, task.problem(), task.model, task.hparams(), callback=measure, **options)
        return result.params, result.hparams, result.gradients

    return method


METHODS: dict[str, Method] = {
    "plain": by_run(PLAIN),
    "plain, averaged": by_run(standing(hg.OptaxSolver(adam, PERIOD, average=AVERAGE))),
    "tpe, 2 % trials": tpe(0.02),
    "tpe, 10 % trials": tpe(0.1),
    "cold": cold(0.02),
    "online": by_run(hg.GradientSearch(ONLINE, OUTER)),
    "online, averaged": by_run(hg.GradientSearch(AVERAGED, OUTER)),
    "online, long horizon": by_run(hg.GradientSearch(LONG, OUTER)),
    "online, pes": by_run(hg.GradientSearch(STRATEGIES, OUTER)),
    "online, four folds": by_run(hg.GradientSearch(ONLINE, OUTER), folds),
    "online, evidence bound": by_run(hg.GradientSearch(ONLINE, OUTER), evidence_bound),
    "online, training loss": by_run(hg.GradientSearch(ONLINE, RATES), training_loss),
    "per weight": by_run(hg.GradientSearch(ONLINE, OUTER), on_validation("weight")),
    "per weight, guarded": by_run(GUARDED, on_validation("weight", guarded=True)),
    "layer and weight": by_run(hg.GradientSearch(ONLINE, OUTER), on_validation("both")),
    "layer and weight, guarded": by_run(GUARDED, on_validation("both", guarded=True)),
    "tune": tuned(),
    "tune, free momentum": tuned(memory=None),
}
