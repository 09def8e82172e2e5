"""The cost of every estimator against the same recursion written by hand, and its distance to the exact hypergradient.

`python -m experiments.benchmarks.cost` prints the tables and writes cost.json. Finished problems are kept in `--out`:
the same command goes on where it was stopped, and another with more problems takes them over.
"""

import dataclasses
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

import hypergrad as hg
from hypergrad.estimators.common.tangents import slope
from hypergrad.ground.tree import differentiable

from ..common.cells import Labels
from ..common.command import command
from ..common.config import Options, Out, Positive, Some
from ..common.report import environment, text_table, write_json
from . import bare
from .by_problem import by_problem
from .measure import (
    Rounds,
    agreement,
    arguments,
    compiled,
    compiled_estimator,
    exact,
    first_call,
    flat,
    memory_with_data_doubled,
)
from .problems import MOMENTUM, PROBLEMS, Benchmark

TARGETS = {"time_over_bare": 1.08, "memory_over_bare": 1.10, "first_call_s": 1.5}
REVERSE_ERROR = 2e-6
DOCUMENTED = {
    "hvp": 1,
    "step_vjp": 2,
    "slope": 2,
}  # in hypergrad.stats.Counts.gradients, and of one ErrorCheck direction


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Time, memory and accuracy of the estimators on three problems, against hand-written loops, on one CPU thread.

    Time is CPU time, the median over rounds of the ratio to another run of the same round. Memory is that which
    XLA allocates for temporaries. Accuracy is against the unrolled hypergradient in float64.
    """

    problems: Some[Literal["P1", "P2", "P3"]] = ("P1", "P2", "P3")
    """P1: logistic regression, a penalty per feature. P2: MLP, a penalty per weight. P3: a weight per example."""
    rounds: Positive = 9  # Interleaved repetitions.
    out: Out = Path("results/cost")
    seed: int = 0  # Seed of the data.
    quick: bool = False  # Two rounds of 25 training steps: shows that it runs, measures nothing.


@dataclasses.dataclass(frozen=True)
class Entry:
    """An estimator and its hand-written counterparts, of which the fastest counts."""

    name: str
    estimator: hg.AbstractEstimator
    bares: tuple[Callable, ...]


def training(case: Benchmark) -> hg.AbstractInnerSolver:
    """Returns SGD with momentum."""
    return hg.OptaxSolver(optax.sgd(case.learning_rate, MOMENTUM), case.num_steps)


def entries(case: Benchmark) -> list[Entry]:
    """Returns all estimators for one case."""
    inner, lr = training(case), case.learning_rate
    neumann = hg.Neumann(20, step_size=lr)
    reversible = hg.OptaxSolver(hg.MomentumSGD(lr, MOMENTUM), case.num_steps)
    return [
        Entry("Reverse", hg.Reverse(inner), (bare.reverse(case), bare.reverse_remat(case))),
        Entry("Reverse(remat=False)", hg.Reverse(inner, remat=False), (bare.reverse_unrolled(case),)),
        Entry(
            "Reverse sqrt(T)",
            hg.Reverse(inner, checkpoints="sqrt"),
            (bare.reverse_sqrt(case), bare.reverse_sqrt_remat(case)),
        ),
        Entry("Reverse(horizon=20)", hg.Reverse(inner, horizon=20, check=None), (bare.reverse(case, 20),)),
        Entry("DrMAD(knots=1)", hg.DrMAD(inner, knots=1, check=None), (bare.drmad(case),)),
        Entry("Reversible", hg.Reversible(reversible, check=None), (bare.reversal(case),)),
        Entry("Greedy every step", hg.Greedy(inner, decay=1.0, warm_start=False, check=None), (bare.greedy(case),)),
        Entry("Implicit CG(20)", hg.Implicit(inner, hg.CG(20, rtol=0.0)), (bare.implicit(case, bare.cg(20)),)),
        Entry("Implicit Neumann(20)", hg.Implicit(inner, neumann), (bare.implicit(case, bare.neumann(20, lr)),)),
    ]


def examine(case: Benchmark, entry: Entry, right: np.ndarray, key: jax.Array) -> dict[str, Any]:
    """Returns a row without the times of later calls."""
    estimator, problem, args = entry.estimator, case.problem, arguments(case)

    def cold():
        return hg.value_and_hypergrad(problem, estimator)(case.hparams, case.params, key)

    row = {"problem": case.name, "estimator": entry.name, "first_call_s": first_call(cold)}
    row["bare_first_call_s"] = min(first_call(partial(jax.jit(f), *args)) for f in entry.bares)
    estimate, _ = estimator.step(problem, case.hparams, estimator.init(problem, case.params, case.hparams), key)
    stats = estimate.stats
    by_hand = [agreement(flat(jax.jit(f)(*args)[1]), right)["relative_error"] for f in entry.bares]
    return row | {
        "bare_relative_error": by_hand,
        **agreement(flat(estimate.hypergradient), right),
        "temp_bytes": compiled_estimator(case, estimator, key).temp_bytes,
        "bare_temp_bytes": [compiled(f, *args).temp_bytes for f in entry.bares],
        "status": repr(hg.Status(int(stats.status))),
        "residual": float(stats.residual),
        "diagnostics": {name: float(value) for name, value in stats.diagnostics.items()},
    }


def measure(case: Benchmark, rounds: int, key: jax.Array) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns one row per estimator, and the cost of Hessian-vector product and step-VJP in inner gradients.

    `slope` is that of one step of training in forward mode, by which errors are measured.
    """
    rows, right, args = [], exact(case), arguments(case)
    calls: dict[Hashable, Callable] = {"plain": partial(jax.jit(bare.plain(case)), *args)}
    for entry in entries(case):
        rows.append(examine(case, entry, right, key))
        state = entry.estimator.init(case.problem, case.params, case.hparams)
        calls[entry.name] = partial(entry.estimator.step, case.problem, case.hparams, state, key)
        for index, function in enumerate(entry.bares):
            calls[entry.name, index] = partial(jax.jit(function), *args)
    count = 20
    products = single_products(case, key, count)
    timed = Rounds(calls | products, rounds, time.process_time)
    for row in rows:
        ours = row["estimator"]
        by_hand = [(ours, index) for index in range(len(row["bare_temp_bytes"]))]
        index, fastest = min(enumerate(by_hand), key=lambda pair: timed.seconds(pair[1]))
        row |= {name: row[name][index] for name in ("bare_temp_bytes", "bare_relative_error")}
        row["memory_over_bare"] = row["temp_bytes"] / row["bare_temp_bytes"]
        row["time_over_bare"] = timed.ratio(ours, fastest)
        row["time_over_plain"] = timed.ratio(ours, "plain")
        row["bare_over_plain"] = timed.ratio(fastest, "plain")
        row["cpu_s"] = timed.seconds(ours)
    return rows, {name: timed.ratio(name, "plain") * case.num_steps / count for name in products}


def single_products(case: Benchmark, key: jax.Array, count: int) -> dict[str, Callable]:
    """Returns calls of `count` Hessian-vector products at one point, step-VJPs along training, and tangents of it."""
    inner, hparams = training(case), case.hparams
    start = inner.init(case.problem, case.params, hparams)

    @jax.jit
    def states(train):
        problem = case.with_train(train).problem
        return jax.lax.scan(lambda s, _: (inner.step(problem, hparams, s, key), s), start, length=count)[1]

    @jax.jit
    def hvps(train):
        gradient = bare.inner_gradient(case, train)
        _, hvp = jax.linearize(lambda w: gradient(w, hparams), case.params)
        ones = jax.tree.map(np.ones_like, case.params)
        return bare.neumann(count, case.learning_rate)(hvp, ones)

    @jax.jit
    def step_vjps(train, states):
        problem = case.with_train(train).problem

        def back(carry, state):
            cotangent, total = carry
            cotangent, by_hparams = hg.Training(inner, problem, hparams, key).step_vjp(state, 0)[1](cotangent)
            return (cotangent, optax.tree.add(total, by_hparams)), None

        first = jax.tree.map(lambda leaf: leaf[0] + 1, differentiable(states))
        return jax.lax.scan(back, (first, optax.tree.zeros_like(hparams)), states, reverse=True)[0]

    @jax.jit
    def slopes(train):
        problem = case.with_train(train).problem
        short = hg.Training(inner.with_num_steps(count), problem, hparams, key)
        return slope(short, start, False, jax.tree.map(np.ones_like, hparams))

    train = case.problem.train
    return {
        "hvp": partial(hvps, train),
        "step_vjp": partial(step_vjps, train, states(train)),
        "slope": partial(slopes, train),
    }


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for every number above its target."""
    found = [
        f"{row['problem']} {row['estimator']}: {name} {row[name]:.3g} > {target}"
        for row in rows
        for name, target in TARGETS.items()
        if row[name] > target
    ]
    return found + [
        f"{row['problem']} Reverse: relative_error {row['relative_error']:.2g} > {REVERSE_ERROR}"
        for row in rows
        if row["estimator"] == "Reverse" and row["relative_error"] > REVERSE_ERROR
    ]


def printed(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row as it is shown."""
    return {
        "": row["problem"],
        "estimator": row["estimator"],
        "time/plain": f"{row['time_over_plain']:.2f}",
        "bare/plain": f"{row['bare_over_plain']:.2f}",
        "time/bare": f"{row['time_over_bare']:.2f}",
        "temp MB": f"{row['temp_bytes'] / 1e6:.3f}",
        "bare MB": f"{row['bare_temp_bytes'] / 1e6:.3f}",
        "memory/bare": f"{row['memory_over_bare']:.2f}",
        "cosine": f"{row['cosine']:.4f}",
        "rel. error": f"{row['relative_error']:.1e}",
        "bare error": f"{row['bare_relative_error']:.1e}",
        "first call s": f"{row['first_call_s']:.2f}",
        "bare first": f"{row['bare_first_call_s']:.2f}",
    }


def measured(config: Config, labels: Labels) -> dict[str, Any]:
    """Returns all that is measured on one problem, and where."""
    key, steps = jax.random.key(config.seed), {"num_steps": 25} if config.quick else {}
    case = PROBLEMS[labels["problem"]](config.seed, **steps)
    rows, products = measure(case, 2 if config.quick else config.rounds, key)
    per_row = case.name == "P3"  # more rows would need more hyperparameters
    growth = {} if per_row else memory_with_data_doubled(case, hg.Reverse(training(case)), bare.reverse, key)
    return {"rows": rows, "products": products, "growth": growth, "environment": environment()}


def main(config: Config) -> None:
    """Measures, prints, writes."""
    found = by_problem(config, PROBLEMS, measured)
    rows = [row for part in found.values() for row in part["rows"]]
    weights = [
        {"": name} | {f"{k} (documented {DOCUMENTED[k]})": f"{v:.2f}" for k, v in part["products"].items()}
        for name, part in found.items()
    ]
    print("\n" + text_table([printed(row) for row in rows]))
    print("\nCost in inner gradients:\n" + text_table(weights))
    print("\nTemporary memory of Reverse with the training rows doubled:")
    growth = {name: part["growth"] for name, part in found.items() if part["growth"]}
    for name, ratios in growth.items():
        print(f"  {name}: " + ", ".join(f"{of} x {value:.4f}" for of, value in ratios.items()))
    print("\nImplicit:")
    for row in rows:
        if row["estimator"].startswith("Implicit"):
            diagnostics = ", ".join(f"{name} {value:.2g}" for name, value in row["diagnostics"].items())
            where = f"{row['problem']} {row['estimator']}: cosine {row['cosine']:.3f}, residual {row['residual']:.2g}"
            print(f"  {where}, {diagnostics}, {row['status']}")
    print("\nAbove target:\n" + "\n".join(f"  {line}" for line in missed(rows) or ["nothing"]))
    results = {"rows": rows, "weights": weights, "memory_with_data_doubled": growth, "missed": missed(rows)}
    environments = {name: part["environment"] for name, part in found.items()}
    write_json(config.out / "cost.json", {"environment": environments, "config": config} | results)


if __name__ == "__main__":
    command(main, Config(cache=False), "benchmarks.cost")
