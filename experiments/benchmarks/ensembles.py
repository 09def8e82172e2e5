"""The cost of a replica in an ensemble, compared with the same program run one replica at a time.

`python -m experiments.benchmarks.ensembles` prints the table and writes summary.json, history.csv and a plot.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.ticker import LogLocator
from tqdm.auto import tqdm

import ensembles as ens
import hypergrad as hg

from ..common.command import command
from ..common.config import Options, Out, Positive, Some
from ..common.figures import COLOURS, figure
from ..common.report import Row, grouped, save
from .measure import energy_counter, planned

GRID, OUTPUTS = 36, 8
ROWS = GRID * OUTPUTS  # linear data need no more rows than the map has columns, once whitened and reduced by QR
OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(2e-3))


QUICK: dict[str, Any] = {"sizes": (1, 3, 10, 30, 100), "steps": 50, "rounds": 2, "alone": 2}


@dataclass(frozen=True)
class Config(Options):
    """Time, memory and energy per replica and training step, for ensembles of 1 to 1000 and one replica at a time.

    The model is of the size of a fit of proton structure: a network 2-25-20-8 on a grid of 36 points, and a linear map
    from its 288 outputs to 288 whitened data, each replica with its own; all rows at every step, Nadam with the
    gradient clipped per replica. All programs are compiled before anything is timed. With several devices the ensemble
    is also spread over them; on a CPU every core is one.
    """

    sizes: Some[Positive] = (1, 3, 10, 30, 100, 300, 1000)  # Numbers of replicas.
    steps: Positive = 500  # Training steps in one timing.
    rounds: Positive = 5  # Interleaved repetitions; ratios are within a round.
    alone: Positive = 5  # Replicas trained one after another in every round.
    seed: int = 0  # Seed of the data and the initial weights.
    out: Out = Path("results/ensembles")


def loss(model, hparams, data, key):
    """Returns chi2 of one replica to its own data."""
    grid, linear, targets = data
    outputs = jax.vmap(model)(grid)
    return jnp.mean((linear @ outputs.ravel() - targets) ** 2)


LIFTED = ens.replicate_loss(loss, (None, None, 0))
ONE, ALL, SPREAD = "one by one", "together", "over devices"


def programs(config: Config) -> dict[str, hg.AbstractInnerSolver]:
    """Returns the same training of one model and of stacked models."""
    return {
        ONE: hg.OptaxSolver(OPTIMISER, config.steps),
        ALL: hg.OptaxSolver(ens.replicate_optimiser(OPTIMISER), config.steps),
    }


def setting(seed: int, num: int):
    """Returns stacked models, and data of which the last belong to the replicas."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jnp.geomspace(3e-5, 1.0, GRID)
    grid = jnp.stack([x, jnp.log(x) / 10], axis=1)
    linear = jax.random.normal(keys[0], (ROWS, ROWS)) / np.sqrt(ROWS)
    make = lambda key: eqx.nn.MLP(2, OUTPUTS, 22, 2, jnp.tanh, key=key)
    models = ens.init_replicas(lambda key: _paper_sizes(make(key), key), keys[1], num)
    return models, (grid, linear, ens.monte_carlo(keys[2], jnp.zeros(ROWS), jnp.eye(ROWS), num))


def _paper_sizes(mlp: eqx.nn.MLP, key) -> eqx.nn.MLP:
    """Returns the network with hidden layers of 25 and 20 units."""
    keys = jax.random.split(key, 3)
    sizes = zip((2, 25, 20), (25, 20, OUTPUTS), keys, strict=True)
    return eqx.tree_at(lambda m: m.layers, mlp, tuple(eqx.nn.Linear(i, o, key=k) for i, o, k in sizes))


def trainer(inner: hg.AbstractInnerSolver, training_loss: Callable, models, data) -> tuple[Callable, int]:
    """Returns a compiled function `(models, data) -> trained models`, and the bytes that it holds."""
    hparams, key = jnp.zeros(1), jax.random.key(0)

    @eqx.filter_jit
    def train(models, data):
        problem = hg.BilevelProblem(training_loss, training_loss, data, data)
        state = inner.init(problem, models, hparams)
        return inner.solve(problem, hparams, state, key)[0].params

    return train, planned(train.lower(models, data).compile().compiled)[1]


def measure(call: Callable, replica_steps: int) -> dict[str, float | None]:
    """Returns wall and CPU milliseconds, and millijoules, per replica and step."""
    joules, wall, cpu = energy_counter(), time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, energy_counter()
    energy = None if joules is None or after is None or after < joules else 1e3 * (after - joules) / replica_steps
    return {"wall_ms": 1e3 * wall / replica_steps, "cpu_ms": 1e3 * cpu / replica_steps, "energy_mj": energy}


def run(config: Config) -> list[dict]:
    """Returns all timings: one dictionary per ensemble and round."""
    inner, rows, calls, memory = programs(config), [], {}, {}
    models, (grid, linear, targets) = setting(config.seed, max(config.alone, *config.sizes))
    first = lambda num: (jax.tree.map(lambda a: a[:num] if eqx.is_array(a) else a, models), targets[:num])
    singles = [(ens.replica(models, r), (grid, linear, targets[r])) for r in range(config.alone)]
    train_one, memory[1, ONE] = trainer(inner[ONE], loss, *singles[0])
    calls[config.alone, ONE] = lambda: [jax.block_until_ready(train_one(*single)) for single in singles]
    memory[config.alone, ONE] = memory[1, ONE]
    for num in config.sizes:
        some, own = first(num)
        args = (some, (grid, linear, own))
        train, memory[num, ALL] = trainer(inner[ALL], LIFTED, *args)
        calls[num, ALL] = lambda train=train, args=args: train(*args)
        if 1 < jax.device_count() <= num:
            mesh = ens.replica_mesh()
            some, own = ens.shard_replicas((some, own), mesh)
            args = (some, (*ens.replicate_on_devices((grid, linear), mesh), own))
            train, per_device = trainer(inner[ALL], LIFTED, *args)
            memory[num, SPREAD] = mesh.size * per_device
            calls[num, SPREAD] = lambda train=train, args=args: train(*args)
    with tqdm(total=(config.rounds + 1) * len(calls), desc="timings") as bar:
        for index in range(-1, config.rounds):  # the first round warms up
            for (num, how), call in calls.items():
                found = measure(call, num * config.steps)
                bar.update()
                if index >= 0:
                    rows.append({"round": index, "replicas": num, "how": how, **found, "bytes": memory[num, how]})
    return rows


def summarise(rows: list[Row]) -> list[Row]:
    """Returns medians over rounds, with the range of the gain."""
    alone = {row["round"]: row for row in rows if row["how"] == ONE}
    table = []
    for mine in grouped(rows, ("how", "replicas")):
        how, num, held = (mine[0][name] for name in ("how", "replicas", "bytes"))
        gains = {unit: [alone[row["round"]][unit] / row[unit] for row in mine] for unit in ("wall_ms", "cpu_ms")}
        energies = [row["energy_mj"] for row in mine]
        table.append(
            {
                "replicas": f"{num}, {how}",
                "wall µs": f"{1e3 * np.median([row['wall_ms'] for row in mine]):.3g}",
                "CPU µs": f"{1e3 * np.median([row['cpu_ms'] for row in mine]):.3g}",
                "gain, wall": _range(gains["wall_ms"]),
                "gain, CPU": _range(gains["cpu_ms"]),
                "memory MB": f"{held / 1e6:.3g}",
                "kB a replica": f"{held / 1e3 / (1 if how == ONE else num):.3g}",
                "energy mJ": "not measurable here" if None in energies else f"{np.median(energies):.3g}",
            }
        )
    return table


def _range(values: list[float]) -> str:
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def draw(path: Path, rows: list[Row]) -> None:
    """Draws time and memory per replica against the size of the ensemble."""
    sizes = {how: sorted({row["replicas"] for row in rows if row["how"] == how}) for how in (ONE, ALL, SPREAD)}
    pick = lambda num, how, name: [row[name] for row in rows if (row["replicas"], row["how"]) == (num, how)]
    with figure(path, 1, 2, (9, 4)) as (left, right):
        for name, label, colour in (("wall_ms", "wall time", COLOURS[0]), ("cpu_ms", "CPU time", COLOURS[1])):
            for how, style in ((ALL, "o-"), (SPREAD, "s--")):
                if sizes[how]:
                    times = 1e3 * np.array([pick(num, how, name) for num in sizes[how]])
                    left.plot(sizes[how], np.median(times, 1), style, color=colour, label=f"{label}, {how}")
                    left.fill_between(sizes[how], times.min(1), times.max(1), color=colour, alpha=0.15, lw=0)
            one = 1e3 * np.median(pick(sizes[ONE][0], ONE, name))
            left.axhline(one, color=colour, ls=":", label=f"{label}, {ONE}")
        left.set(xscale="log", yscale="log", xlabel="replicas", ylabel="µs per replica and step")
        memory = [pick(num, ALL, "bytes")[0] / 1e3 / num for num in sizes[ALL]]
        right.plot(sizes[ALL], memory, "o-", color="black", label=ALL)
        right.axhline(pick(sizes[ONE][0], ONE, "bytes")[0] / 1e3, color="black", ls=":", label=ONE)
        right.set(xscale="log", yscale="log", xlabel="replicas", ylabel="kB per replica, data included")
        for axes in (left, right):
            axes.grid(alpha=0.3, which="both")
            axes.legend(fontsize=8)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))


def main(config: Config) -> dict[str, Any]:
    """Measures, writes everything, returns the summary."""
    rows = run(config)
    draw(config.out / "ensembles.png", rows)
    title = "Per replica and training step; gain: how many times cheaper than one by one, median and range of rounds."
    return save(config, rows, summarise(rows), rows, title)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    command(main, Config(cache=False), "benchmarks.ensembles", quick=QUICK)
