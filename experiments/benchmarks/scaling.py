"""Growth of time and memory with steps, hyperparameters, rows, weights, replicas and trials.

`python -m experiments.benchmarks.scaling` prints the fitted slopes and writes scaling.json and scaling.png. Finished
parts are kept in `--out`: the same command goes on where it was stopped, and another with more parts takes them over.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensembles as ens
import hypergrad as hg

from ..common.cells import Cells, Labels
from ..common.command import command
from ..common.config import Options, Out, Positive, Some
from ..common.figures import COLOURS, figure
from ..common.report import environment, text_table, write_json
from .by_problem import ONE_THREAD

Part = Literal["steps", "hyperparameters", "rows", "weights", "replicas", "trials"]
PARTS: tuple[Part, ...] = get_args(Part)
SIZES: dict[str, tuple[int, ...]] = {
    "steps": (1_000, 10_000, 100_000),
    "hyperparameters": (10_000, 100_000, 1_000_000, 10_000_000),
    "rows": (1_000, 10_000, 100_000, 1_000_000, 10_000_000),
    "weights": (1_000_000, 10_000_000, 100_000_000),
    "replicas": (1, 10, 100, 1_000),
    "trials": (100, 1_000, 5_000),
}
WIDTH, BATCH = 16, 64


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Growth of time and memory, each part over sizes ten times apart.

    Time is that of one call after compilation, the shortest of several, on one thread. Memory is what XLA allocates for
    temporaries. The slope is that of log(time) against log(size) over the upper half of the sizes: 1 is linear.
    Operations and bytes are XLA's count, divided by the time of the call, and by what a product and a copy reach on the
    same device. XLA counts loops once whose length it does not know, and all of an array of which rows are read.
    """

    parts: Some[Part] = PARTS
    """steps: reverse mode with 100 checkpoints. hyperparameters, rows, weights: one greedy step of a linear model.
    replicas: reverse mode of small models together. trials: one random trial of a search that has so many."""
    largest: Positive = 100_000_000  # Leaves out larger sizes.
    repeats: Positive = 3  # Calls of each size.
    out: Out = Path("results/scaling")
    quick: bool = False  # The two smallest sizes of each part: shows that it runs, measures nothing.


@dataclasses.dataclass(frozen=True)
class Call:
    """Something of one size to be timed, and the compiled program in it if there is one."""

    run: Callable[[], Any]
    compiled: Any = None


def squares(w: jax.Array, log_penalty: jax.Array, data: Any, key: jax.Array) -> jax.Array:
    """Returns the mean squared error of a linear model, penalised."""
    return mean_squares(w, log_penalty, data, key) + 1e-3 * jnp.mean(jnp.exp(log_penalty) * w**2)


def mean_squares(w: jax.Array, log_penalty: jax.Array, data: Any, key: jax.Array) -> jax.Array:
    """Returns the mean squared error of a linear model whose weights are shared by equal inputs."""
    x, y = data
    return jnp.mean((x @ jnp.sum(w.reshape(WIDTH, -1), axis=1) - y) ** 2)


def data_of(rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, WIDTH), np.float32)
    return jnp.asarray(x), jnp.asarray(x[:, 0])


def one_step(problem: hg.BilevelProblem, estimator: Any, size: int, num_hparams: int) -> Call:
    """Returns one compiled step of an estimator, the data an argument."""
    params, hparams, key = jnp.zeros(size), jnp.zeros(num_hparams), jax.random.key(0)
    state = estimator.init(problem, params, hparams)
    arrays, static = eqx.partition(problem, eqx.is_array)

    def step(arrays, hparams, state, key):
        return estimator.step(eqx.combine(arrays, static), hparams, state, key)

    compiled = jax.jit(step).lower(arrays, hparams, state, key).compile()
    return Call(lambda: compiled(arrays, hparams, state, key), compiled)


def sgd(steps: int) -> hg.AbstractInnerSolver:
    """Returns SGD with momentum."""
    return hg.OptaxSolver(optax.sgd(0.01, 0.9), steps)


def of_steps(size: int) -> Call:
    """Returns reverse mode through so many steps, of which 100 are kept."""
    problem = hg.BilevelProblem(squares, mean_squares, data_of(BATCH), data_of(BATCH))
    return one_step(problem, hg.Reverse(sgd(size), checkpoints=100), 64 * WIDTH, 64 * WIDTH)


def of_hyperparameters(size: int) -> Call:
    """Returns a greedy step with one penalty for each of so many weights."""
    size = -(-size // WIDTH) * WIDTH
    problem = hg.BilevelProblem(squares, mean_squares, data_of(BATCH), data_of(BATCH))
    return one_step(problem, hg.Greedy(sgd(1), check=None), size, size)


def of_weights(size: int) -> Call:
    """Returns a greedy step with one penalty for all of so many weights."""
    size = -(-size // WIDTH) * WIDTH
    problem = hg.BilevelProblem(squares, mean_squares, data_of(BATCH), data_of(BATCH))
    return one_step(problem, hg.Greedy(sgd(1), check=None), size, 1)


def of_rows(size: int) -> Call:
    """Returns a greedy step on a batch of so many rows."""
    problem = hg.BilevelProblem(squares, mean_squares, hg.Batches(data_of(size), BATCH), data_of(BATCH))
    return one_step(problem, hg.Greedy(sgd(1), check=None), WIDTH, WIDTH)


def of_replicas(size: int) -> Call:
    """Returns reverse mode through 100 steps of so many replicas together."""
    losses = ens.replicate_loss(squares)
    outer = lambda w, *rest: jnp.mean(jax.vmap(lambda one: mean_squares(one, *rest))(w))
    problem = hg.BilevelProblem(losses, outer, data_of(BATCH), data_of(BATCH))
    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.01, 0.9), 100))
    params, hparams, key = jnp.zeros((size, 4 * WIDTH)), jnp.zeros(4 * WIDTH), jax.random.key(0)
    state = estimator.init(problem, params, hparams)
    compiled = jax.jit(partial(estimator.step, problem)).lower(hparams, state, key).compile()
    return Call(lambda: compiled(hparams, state, key), compiled)


def of_trials(size: int) -> Call:
    """Returns the time of one more random trial after so many."""
    space, searcher = hg.trials.Space({"rate": hg.trials.Float(1e-4, 1.0, log=True)}), hg.trials.Random()
    known = [hg.trials.FinishedTrial(hg.trials.Trial(None, {"rate": 0.1}), hg.trials.Result(1.0))] * size
    state = searcher.init(space, jax.random.key(0))
    for one in known:
        state = searcher.tell(state, one.trial, one.result)

    def again():
        nonlocal state  # a history that grows twice from one state is copied
        state, trial = searcher.ask(state)
        state = searcher.tell(state, trial, hg.trials.Result(0.5))

    return Call(again)


MAKERS: dict[str, Callable[[int], Call]] = {
    "steps": of_steps,
    "hyperparameters": of_hyperparameters,
    "rows": of_rows,
    "weights": of_weights,
    "replicas": of_replicas,
    "trials": of_trials,
}


def shortest(call: Callable[[], Any], repeats: int) -> float:
    """Returns the shortest time of several calls: CPU time, on a GPU wall time."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def once():
        begun = clock()
        jax.block_until_ready([leaf for leaf in jax.tree.leaves(call()) if eqx.is_array(leaf)])
        return clock() - begun

    return min(once() for _ in range(repeats))


def device_rates(repeats: int) -> dict[str, float]:
    """Returns the operations a second of a product of large matrices, and the bytes a second of a copy."""
    side, length = 1024, 2**24
    a, x = jnp.ones((side, side)), jnp.ones(length)
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    product(a), copy(x)
    return {
        "flops": 2 * side**3 / shortest(lambda: product(a), repeats),
        "bytes": 8 * length / shortest(lambda: copy(x), repeats),
    }


def measured(part: str, size: int, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """Returns the row of one size."""
    begun = time.perf_counter()
    call = MAKERS[part](size)
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(call.run()) if eqx.is_array(leaf)])
    row: dict[str, Any] = {"part": part, "size": size, "first_call_s": time.perf_counter() - begun}
    row["seconds"] = shortest(call.run, repeats)
    if call.compiled is not None:
        cost = call.compiled.cost_analysis() or {}
        row["temp_bytes"] = call.compiled.memory_analysis().temp_size_in_bytes
        for name, key in (("flops", "flops"), ("bytes", "bytes accessed")):
            row[name] = float(cost.get(key, 0.0))
            row[f"{name}_share"] = row[name] / row["seconds"] / rates[name]
    return row


def slope(rows: list[dict[str, Any]], column: str) -> float | None:
    """Returns the slope of log(column) against log(size), over the upper half of the sizes."""
    points = [(row["size"], row[column]) for row in rows if row.get(column)]
    points = points[-max(2, -(-len(points) // 2)) :]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def slopes(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the slopes of every part."""
    for part in dict.fromkeys(row["part"] for row in rows):
        ours = [row for row in rows if row["part"] == part]
        yield {"part": part} | {f"{name}_slope": slope(ours, name) for name in ("seconds", "temp_bytes")}


def printed(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row as it is shown."""
    # A share above 1 is no share: more was counted than was done.
    share = lambda name: f"{row[name]:.0%}" if row.get(name, 2) <= 1 else "-"
    return {
        "part": row["part"],
        "size": f"{row['size']:,}",
        "ms": f"{1e3 * row['seconds']:.4g}",
        "temp MB": f"{row['temp_bytes'] / 1e6:.4g}" if "temp_bytes" in row else "-",
        "first call s": f"{row['first_call_s']:.2f}",
        "of a product": share("flops_share"),
        "of a copy": share("bytes_share"),
    }


def printed_slopes(lines: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns the slopes as they are shown."""
    show = lambda number: "-" if number is None else f"{number:.2f}"
    heads = {"slope of time": "seconds_slope", "slope of memory": "temp_bytes_slope"}
    return [{"part": line["part"]} | {head: show(line[name]) for head, name in heads.items()} for line in lines]


def of_part(config: Config, labels: Labels) -> dict[str, Any]:
    """Returns the rows of one part, and where they were measured."""
    part, rates = labels["part"], device_rates(config.repeats)
    sizes = [size for size in SIZES[part] if size <= config.largest][: 2 if config.quick else None]
    rows = [measured(part, size, config.repeats, rates) for size in sizes]
    return {"rows": rows, "device": rates, "environment": environment()}


def main(config: Config) -> None:
    """Measures, prints, writes."""
    os.environ.update(ONE_THREAD)  # read when JAX first meets its device
    store, found = Cells(dataclasses.replace(config, parts=PARTS)), {}
    for part in config.parts:
        labels = {"part": part, "quick": config.quick}
        found[part] = store.get(labels, partial(of_part, config, labels))
        print(f"{part} done", flush=True)
    rows = [row for one in found.values() for row in one["rows"]]
    where = {part: {name: one[name] for name in ("environment", "device")} for part, one in found.items()}
    first = where[config.parts[0]]["environment"]
    results = {"environment": first, "measured": where, "config": config, "rows": rows, "slopes": list(slopes(rows))}
    write_json(config.out / "scaling.json", results)
    print("\n" + text_table([printed(row) for row in rows]))
    lines = printed_slopes(results["slopes"])
    print("\nSlopes:\n" + text_table(lines))
    with figure(config.out / "scaling.png") as ax:
        for line, colour in zip(lines, COLOURS, strict=False):
            ours = [row for row in rows if row["part"] == line["part"]]
            x, y = [row["size"] for row in ours], [row["seconds"] for row in ours]
            ax.loglog(x, y, "o-", color=colour, label=f"{line['part']}: slope {line['slope of time']}")
        ax.set(xlabel="size", ylabel="seconds of one call")
        ax.grid(alpha=0.3)
        ax.legend()


if __name__ == "__main__":
    command(main, Config(cache=False), "benchmarks.scaling")
