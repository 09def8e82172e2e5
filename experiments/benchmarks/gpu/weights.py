"""Ten million hyperparameters, one per weight: time of an update and memory in copies of the weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import optax

import hypergrad as hg

from ...common.follow import value_of
from .. import bare
from ..cost import training
from ..measure import Rounds, arguments, compiled, compiled_estimator, peak_bytes, planned
from ..problems import MOMENTUM, Benchmark
from .config import Config
from .networks import network, num_weights

ROWS = 256


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns two processes, each with its own peak: `greedy`, one step at a time; `unrolled`, whole runs."""
    steps = config.sizes.updates if variant == "greedy" else config.sizes.unrolled
    case = network(config.seed, config.sizes.wide, ROWS, steps)
    plain = compiled(bare.plain(case), *arguments(case))
    rounds = config.sizes.rounds
    found: dict[str, Callable[[], dict[str, Any]]] = {f"plain, T = {steps}": lambda: alone(case, plain, rounds)}
    if variant == "greedy":
        return found | {"Greedy, online": partial(greedy, case, plain, rounds)}
    estimators = {"DrMAD": hg.DrMAD(training(case), check=None), "Reverse": hg.Reverse(training(case))}
    for name, estimator in estimators.items():
        found[f"{name}, T = {steps}"] = partial(unrolled, case, plain, estimator, rounds)
    return found


def copies(case: Benchmark, size: int | None) -> float | None:
    """Divides bytes by the bytes of the weights."""
    return None if size is None else size / (4 * num_weights(case))


def alone(case: Benchmark, plain, rounds: int) -> dict[str, Any]:
    """Measures training alone."""
    timed = Rounds({"plain": plain.call}, rounds)
    return {
        "hyperparameters": num_weights(case),
        "update_us": 1e6 * timed.seconds("plain") / case.num_steps,
        "planned_copies": copies(case, plain.planned_bytes),
        "peak_copies": copies(case, peak_bytes()),
    }


def greedy(case: Benchmark, plain, rounds: int) -> dict[str, Any]:
    """Measures the online rule by `run`: one update of the weights and one of the hyperparameters a step."""
    inner = hg.OptaxSolver(optax.sgd(case.learning_rate, MOMENTUM), 1)
    search = hg.GradientSearch(hg.Greedy(inner), optax.adam(0.01))
    state, spent, key = search.init(case.problem, case.params, case.hparams), 0, jax.random.key(0)
    program = eqx.filter_jit(search.step).lower(case.problem, state, key).compile()
    temp_bytes, planned_bytes = planned(program.compiled)

    def updates():
        nonlocal state, spent
        spent += case.num_steps
        options = {"key": key, "budget": spent, "chunk": case.num_steps, "keep": value_of}
        state, _ = hg.run(search, case.problem, state, **options)
        return state

    timed = Rounds({"plain": plain.call, "greedy": updates}, rounds)
    return {
        "hyperparameters": num_weights(case),
        "update_us": 1e6 * timed.seconds("greedy") / case.num_steps,
        "time_over_plain": timed.ratio("greedy", "plain"),
        "temp_copies": copies(case, temp_bytes),
        "planned_copies": copies(case, planned_bytes),
        "peak_copies": copies(case, peak_bytes()),
        "value": float(state.best.value),
    }


def unrolled(case: Benchmark, plain, estimator: hg.AbstractEstimator, rounds: int) -> dict[str, Any]:
    """Measures a whole short run and its hypergradient."""
    program = compiled_estimator(case, estimator, jax.random.key(0))
    timed = Rounds({"plain": plain.call, "ours": program.call}, rounds)
    return {
        "hyperparameters": num_weights(case),
        "seconds": timed.seconds("ours"),
        "update_us": 1e6 * timed.seconds("ours") / case.num_steps,
        "time_over_plain": timed.ratio("ours", "plain"),
        "temp_copies": copies(case, program.temp_bytes),
        "planned_copies": copies(case, program.planned_bytes),
        "peak_copies": copies(case, peak_bytes()),
        "compile_s": program.compile_s,
    }
