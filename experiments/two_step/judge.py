"""Results of a two-step search compared with training everything on all data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import hypergrad as hg

States = Sequence[hg.trials.SearcherState]


def costs(state: hg.trials.SearcherState) -> tuple[float, float]:
    """Returns the seconds of training and of compilation."""
    compiling = sum(one.result.compile_seconds for one in state.history)
    return state.spent.seconds - compiling, compiling


def judge(config: Any, key: tuple[int, float], steps: States, full: hg.trials.SearcherState) -> dict[str, Any]:
    """Compares a two-step search of a seed, from a fraction of the data, with training all trials on all data."""
    few, again = steps
    pairs = zip(few.history, full.history, strict=True)
    usable = [
        (one.result.value, all_.result.value) for one, all_ in pairs if not (one.result.failed or all_.result.failed)
    ]
    first, last = np.array(usable).T
    order = np.argsort(first, kind="stable")
    (train, compiling), (train_again, compiling_again), (train_all, compiling_all) = map(costs, (few, again, full))
    best = again.best
    assert best is not None
    return {
        "seed": key[0],
        "fraction": key[1],
        "rows": round(key[1] * (config.num_train if config.data == "arg4" else 18_000)),
        "spearman": float(spearmanr(first, last).statistic),
        "place_of_best": int(np.flatnonzero(order == np.argmin(last))[0]) + 1,
        "excess": float(best.result.value / last.min() - 1),
        "test": best.result.metrics["test"],
        "speed_up": train_all / (train + train_again),
        "speed_up_compiled": (train_all + compiling_all) / (train + compiling + train_again + compiling_again),
        "seconds": train,
        "compile_seconds": compiling,
        "failed": config.num_trials - len(usable),
    }


def row(config: Any, one: hg.trials.FinishedTrial) -> dict[str, Any]:
    """Returns one trial as a line."""
    result, units = one.result, [one.trial.params.get(f"units_{i}") for i in range(1, config.max_depth + 1)]
    return {
        "trial": one.trial.number,
        "units": "-".join(str(unit) for unit in units if unit is not None),
        "size": result.size,
        "value": result.value,
        "test": result.metrics.get("test"),
        "seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "error": result.error,
    }


def per_shape(
    config: Any, shapes: Mapping[tuple[int, float], States], searches: Mapping[tuple[int, float], States]
) -> dict[str, float] | None:
    """Compares trials with a program of their own size each with the same in one program for all."""
    for (number, fraction), (state,) in shapes.items():
        train, compiling = costs(state)
        padded_train, padded_compiling = costs(searches[config.first_seed, fraction][0])
        return {
            "fraction": fraction,
            "trials": number,
            "programs": sum(one.result.compilations > 0 for one in state.history),
            "seconds_per_trial": train / number,
            "compile_seconds_per_trial": compiling / number,
            "padded_seconds_per_trial": padded_train / config.num_trials,
            "padded_compile_seconds": padded_compiling,
        }
    return None


def growth(config: Any, timed: Mapping[tuple[int, float], States]) -> list[dict[str, float]]:
    """Returns the speed-up where the rows and the updates grow and the first step stays as it is.

    By the times of one batch on all data and of two batches of the first step, which are taken to be those of all.
    """
    lines = []
    starts = [costs(state) for (_, fraction), (state,) in timed.items() if fraction < 1]
    for (num_rows, fraction), (state,) in timed.items():
        if fraction < 1:
            continue
        start, start_compiling = starts[0]
        train, compiling = costs(state)
        each, first = train / config.top, start / (2 * config.top)
        for trials in config.growth_trials:
            every, steps = trials * each, trials * first + config.top * each
            compiled = (every + compiling) / (steps + start_compiling + compiling)
            line = {"rows": num_rows, "trials": trials, "seconds_per_trial": each, "seconds_per_first_trial": first}
            lines.append(line | {"speed_up": every / steps, "speed_up_compiled": compiled})
    return lines
