"""The comparison: every way to a hypergradient on a problem, in one process, interleaved.

Finished problems are kept in `--out`: the same command goes on where it was stopped, and another with more problems
takes them over.
"""

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from ...common.cells import Labels
from ...common.config import Digits, Options, Out, Positive, Some, default_data_dir
from ...common.figures import COLOURS, panel_figure
from ...common.report import environment, grouped, write_json
from .. import bare
from ..by_problem import by_problem
from ..measure import Rounds, agreement, arguments, exact
from ..problems import PROBLEMS, Benchmark
from . import with_jax, with_torch
from .call import Peer, compiled
from .networks import CONVOLUTIONS, NETWORKS
from .page import ON_TORCH, library, page

PLAIN = "JAX: training alone"
# Modules of the peers, and the distributions that they come from.
PACKAGES = {
    "optimistix": "optimistix",
    "gradhpo": "gradhpo",
    "torch": "torch",
    "torchopt": "torchopt",
    "higher": "higher",
    "betty": "betty-ml",
}
Problem = Literal["P1", "P2", "P3", "CNN", "CNN-XLA", "LSTM"]
ALL: tuple[Problem, ...] = get_args(Problem)


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Hypergradients of ours and of other libraries on the same problems, on one CPU thread.

    Time is CPU time, the median over rounds of the ratio to plain JAX training in the same round. Memory is that which
    XLA allocates for temporaries, for torch the growth of the process. The error is that against the unrolled
    hypergradient in float64; for implicit methods it holds the distance of the last weights from the solution too.
    Libraries that are not installed are left out by name: pip install 'hypergrad-jax[peers]'.
    """

    problems: Some[Problem] = ALL
    """P1, P2, P3: see experiments.benchmarks.problems. CNN, LSTM: small networks, one penalty per weight; CNN-XLA: with
    XLA's own convolutions on JAX in place of products of patches."""
    rounds: Positive = 5  # Interleaved repetitions.
    out: Out = Path("results/peers")
    seed: int = 0  # Seed of the data.
    data: Digits = "mnist"
    data_dir: Path | None = dataclasses.field(default_factory=default_data_dir)
    """Folder of MNIST, on which the CNN is trained [environment: HYPERGRAD_DATA]."""
    quick: bool = False  # Two rounds of 5 training steps: shows that it runs, measures nothing.


def available(case: Benchmark) -> dict[str, Callable[[], Peer]]:
    """Returns all peers of a problem by name."""
    return with_jax.peers(case) | with_torch.peers(case)


def examine(name: str, make: Callable[[], Peer], right: np.ndarray) -> tuple[dict[str, Any], Peer | None]:
    """Returns a row without times of later calls, and the peer, `None` if it fails."""
    begun = time.perf_counter()
    try:
        peer = make()
        found = jax.block_until_ready(peer.call())
    except Exception as error:  # of a library that is not there, or cannot do this
        return {"peer": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}, None
    row = {"peer": name, "first_call_s": time.perf_counter() - begun, "exact": peer.exact}
    memory = with_torch.growth(peer.call) if peer.temp_bytes is None else peer.temp_bytes()
    return row | {"bytes": memory} | agreement(peer.vector(found), right), peer


def measure(case: Benchmark, rounds: int) -> list[dict[str, Any]]:
    """Returns one row per peer."""
    right, rows = exact(case), []
    calls: dict[Any, Callable] = {PLAIN: compiled(lambda *args: bare.plain(case)(*args)[1], *arguments(case)).call}
    for name, make in available(case).items():
        row, peer = examine(name, make, right)
        rows.append({"problem": case.name} | row)
        if peer is None:
            print(f"{case.name}: {name} is left out: {row['error']}", flush=True)
        else:
            calls[name] = peer.call
    timed = Rounds(calls, rounds, time.process_time)
    for row in rows:
        if row["peer"] in timed.times:
            row["time_over_plain"] = timed.ratio(row["peer"], PLAIN)
            row["cpu_s"] = timed.seconds(row["peer"])
    return rows


def measured(config: Config, labels: Labels) -> dict[str, Any]:
    """Returns the rows of one problem, and where they were measured."""
    name, options = labels["problem"], {"num_steps": 5} if config.quick else {}
    of_images = {"data": config.data, "data_dir": config.data_dir} if name in CONVOLUTIONS else {}
    case = (PROBLEMS | NETWORKS)[name](config.seed, **options, **of_images)
    there = {name: importlib.metadata.version(package) for name, package in PACKAGES.items() if find_spec(name)}
    rows = measure(case, 2 if config.quick else config.rounds)
    return {"rows": rows, "environment": environment() | there}


def main(config: Config) -> None:
    """Measures, prints, writes."""
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        print(f"not installed and left out: {', '.join(missing)}", flush=True)
    found = by_problem(config, ALL, measured)
    rows = [row for part in found.values() for row in part["rows"]]
    environments = {name: part["environment"] for name, part in found.items()}
    first = environments[config.problems[0]]
    results = {"environment": first, "environments": environments, "config": config, "missing": missing, "rows": rows}
    print(f"\n{page(results)}")
    write_json(config.out / "peers.json", results)
    draw(config.out / "peers.png", [row for row in rows if "error" not in row])


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws times, a panel for each problem; what is not the hypergradient of the run itself is hollow."""
    panels = grouped(rows, ("problem",))
    height = 0.25 * max(len(mine) for mine in panels) + 1
    with panel_figure(path, len(panels), (4.2, height), across=3, sharex=True) as axes:
        for ax, mine in zip(axes.flat, panels, strict=False):
            mine = sorted(mine, key=lambda row: -row["time_over_plain"])
            for at, row in enumerate(mine):
                colour = COLOURS[0] if library(row) == "ours" else COLOURS[7 if library(row) in ON_TORCH else 1]
                face = colour if row["exact"] else "none"
                ax.plot(row["time_over_plain"], at, "o", color=colour, markerfacecolor=face)
            ax.set_yticks(range(len(mine)), [row["peer"] for row in mine], fontsize=8)
            ax.set(title=mine[0]["problem"], xlabel="training runs", xscale="log")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
            ax.grid(alpha=0.3)
