"""The time of a trial beside plain Optuna's after so many others, and of random trials.

`python -m experiments.benchmarks.asks` prints milliseconds of an ask and a tell, and their ratio.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
import tyro

import hypergrad as hg

from ..common.report import text_table
from .measure import Rounds, seconds

LEAVES = ("a", "b", "c", "d", "e")
SPACE = hg.trials.Space({name: hg.trials.Float(0.0, 1.0) for name in LEAVES})
STORAGES = ("memory", "file", "SQLite")


@dataclasses.dataclass(frozen=True)
class Config:
    """Time trials of Optuna's TPE with five numbers, whose training takes no time."""

    trials: tuple[int, ...] = (100, 1_000, 5_000)  # Told before; on SQLite at most 1,000.
    rounds: int = 20  # Trials of each kind, in turns; the median of their ratios is reported.
    random: int = 10_000  # Random trials.


def tpe(seed: int) -> Any:
    """Returns the sampler."""
    return optuna.samplers.TPESampler(seed=seed)


def loss(values: Any) -> float:
    """Returns the squared distance from the centre."""
    return float(sum((value - 0.5) ** 2 for value in values))


def points(number: int) -> np.ndarray:
    """Returns the values of the trials told before."""
    return np.random.default_rng(0).random((number, len(LEAVES)))


def stored(kind: str, folder: str) -> Any:
    """Returns a new storage of a kind, `None` in memory."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "study"
    storages = optuna.storages
    if kind == "file":
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
    return storages.RDBStorage(f"sqlite:///{path}.db") if kind == "SQLite" else None


def study_of(storage: Any, number: int) -> Any:
    """Returns a study that was told so many trials."""
    study = optuna.create_study(storage=storage, study_name="study", sampler=tpe(0))
    distributions = dict.fromkeys(LEAVES, optuna.distributions.FloatDistribution(0.0, 1.0))
    for point in points(number):
        params = dict(zip(LEAVES, point.tolist(), strict=True))
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=loss(point)))
    return study


def plain(storage: Any, number: int) -> Callable[[], None]:
    """Returns one more trial of a loop by hand."""
    study = study_of(storage, number)

    def again() -> None:
        trial = study.ask()
        study.tell(trial, loss([trial.suggest_float(name, 0.0, 1.0) for name in LEAVES]))

    return again


def ours(storage: Any, number: int) -> Callable[[], None]:
    """Returns one more trial of a searcher; without a storage it is told those before itself."""
    if storage is not None:
        study_of(storage, number)
    searcher = hg.trials.Optuna(tpe, storage=storage, study="study")
    state = searcher.init(SPACE, jax.random.key(0))
    for point in points(number if storage is None else 0):
        trial = hg.trials.Trial(None, dict(zip(LEAVES, point.tolist(), strict=True)))
        state = searcher.tell(state, trial, hg.trials.Result(loss(point)))

    def again() -> None:
        nonlocal state
        state, trial = searcher.ask(state)
        state = searcher.tell(state, trial, hg.trials.Result(loss(trial.params.values())))

    return again


def compared(config: Config, folder: str) -> Iterator[dict[str, str]]:
    """Yields one line per storage and number of trials."""
    for kind, number in itertools.product(STORAGES, config.trials):
        if kind == "SQLite" and number > 1_000:
            continue
        calls = {"plain": plain(stored(kind, folder), number), "ours": ours(stored(kind, folder), number)}
        timed = Rounds(calls, config.rounds)
        columns = {f"{name} ms": f"{1e3 * timed.seconds(name):.2f}" for name in calls}
        yield {"storage": kind, "trials": f"{number:,}"} | columns | {"ratio": f"{timed.ratio('ours', 'plain'):.2f}"}


def main(config: Config) -> None:
    """Measures and prints."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        print(text_table(list(compared(config, folder))))
    search = hg.trials.search_trials
    objective, key = lambda trial, key: loss(trial.params.values()), jax.random.key(0)
    took = seconds(lambda: search(hg.trials.Random(), SPACE, objective, key=key, num_trials=config.random).asked)
    print(f"\n{config.random:,} random trials: {took:.2f} s of CPU time, {1e6 * took / config.random:.0f} µs each")


if __name__ == "__main__":
    main(tyro.cli(Config, description=Config.__doc__))
