"""The processor's time of a whole call of `tune`, compared with that of plain training written by hand.

`python -m experiments.benchmarks.tune` prints both, compiled before, for two networks of the tabular experiment.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import tyro

import hypergrad as hg

from ..common.directed import standing
from ..common.report import text_table
from ..tabular.data import read
from ..tabular.model import GOOD, adam, hparams_of, losses_of, network
from .measure import Rounds

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Time `tune` with its defaults, from the good start, and plain training by a compiled scan and by `run`."""

    data_dir: Path | None = (
        None  # The folder that `experiments.tabular` reads; without it diabetes stands for both sets.
    )
    updates: tuple[int, ...] = (5_000, 20_000, 100_000)  # Lengths of training.
    rounds: int = 5  # Calls of each kind, in turns; the median of their ratios is reported.
    steps: int = 100  # Steps of the short calls of `run`, of one update each.


class Setting(NamedTuple):
    """A network with its problem."""

    model: eqx.nn.MLP
    problem: hg.BilevelProblem
    hparams: Any


def setting(data_dir: Path | None, name: str, hidden: int, batch: int) -> Setting:
    """Returns a network of the tabular experiment."""
    table = read(name if data_dir else "diabetes", data_dir, 12, 0.1)
    model, losses = network(KEY, table, hidden), losses_of(table.classes, batch)
    problem = hg.BilevelProblem(*losses, table.splits.train, table.splits.valid)
    return Setting(model, problem, hparams_of(model, GOOD))


def by_hand(case: Setting, updates: int) -> Callable[[], Any]:
    """Returns plain training as one compiled scan."""
    params, static = eqx.partition(case.model, eqx.is_inexact_array)

    @jax.jit
    def train(params, hparams, data, key):
        optimiser = adam(hparams)

        def update(carry, t):
            params, moments = carry
            batch = hparams, data, jax.random.fold_in(key, t)
            loss = lambda params: case.problem.inner_loss(eqx.combine(params, static), *batch)
            moved, moments = optimiser.update(jax.grad(loss)(params), moments, params)
            return (optax.apply_updates(params, moved), moments), None

        return jax.lax.scan(update, (params, optimiser.init(params)), jnp.arange(updates))[0][0]

    return lambda: train(params, case.hparams, case.problem.train, KEY)


def ours(case: Setting, updates: int) -> dict[str, Callable[[], Any]]:
    """Returns plain training by `run`, measured a hundred times, and `tune`, whose hypergradients add a tenth."""
    search, solver = standing(hg.OptaxSolver(adam, updates // 100)), hg.OptaxSolver(adam, updates)
    state = search.init(case.problem, case.model, case.hparams)
    return {
        "run": lambda: hg.run(search, case.problem, state, key=KEY, budget=updates)[0].best.value,
        "tune": lambda: hg.tune(solver, case.problem, case.model, case.hparams, key=KEY).value,
    }


def short(case: Setting, steps: int) -> Callable[[], Any]:
    """Returns a `run` of so many updates with greedy hypergradients."""
    search = hg.GradientSearch(hg.Greedy(hg.OptaxSolver(adam, 1), check=None), optax.adam(0.01))
    state = search.init(case.problem, case.model, case.hparams)
    return lambda: hg.run(search, case.problem, state, key=KEY, budget=steps)[0].best.value


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns one line for each network and length."""
    rows = []
    for name, hidden, batch in (("energy", 32, 32), ("kin8nm", 50, 128)):
        case = setting(config.data_dir, name, hidden, batch)
        for updates in config.updates:
            timed = Rounds({"by hand": by_hand(case, updates)} | ours(case, updates), config.rounds, time.process_time)
            ratios = {kind: timed.ratio(kind, "by hand") for kind in ("run", "tune")}
            rows.append({"units": hidden, "updates": updates, "by hand, s": timed.seconds("by hand")} | ratios)
            print(rows[-1], flush=True)
        few = Rounds({"": short(case, config.steps)}, config.rounds, time.process_time).seconds("")
        print(f"{hidden} units, a run of {config.steps} greedy steps: {1e3 * few:.1f} ms")
    print(text_table([{k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config))
