"""Prints what a checkpoint costs a run: time per update and peak memory without and with it.

    python -m tests.faults.checkpoint_cost --size 10000000 --seconds 60 --every 30

Each of the two runs is a process of its own: one log penalty per weight of a linear model, a greedy hypergradient.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg

from tests.helpers import ROOT


def inner_loss(w, hparams, data, key):
    return jnp.mean((w - data) ** 2) + jnp.mean(jnp.exp(hparams) * w**2)


def outer_loss(w, hparams, data, key):
    return jnp.mean((w - data) ** 2)


def measure(size, seconds, every, path):
    """Times every update after the first two, which compile and fill the memory."""
    data = jnp.sin(jnp.arange(size, dtype=jnp.float32))
    problem = hg.BilevelProblem(inner_loss, outer_loss, data, data + 0.1)
    search = hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.sgd(0.1), 2)), optax.sgd(0.1))
    state, times = search.init(problem, jnp.zeros(size), jnp.zeros(size)), []
    options = {"checkpoint": path, "every": every} if path else {}
    started = time.perf_counter()
    cpu = time.process_time()
    hg.run(
        search,
        problem,
        state,
        key=jax.random.key(0),
        budget=hg.Budget(seconds=seconds),
        callback=lambda *_: times.append(time.perf_counter()),
        keep=lambda record: record.value,
        **options,
    )
    wall = time.perf_counter() - started
    updates = np.diff(times)[2:]
    return {
        "updates": len(updates),
        "mean": float(np.mean(updates)),
        "median": float(np.median(updates)),
        "cpu": (time.process_time() - cpu) / len(times),
        "wall": wall,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def child(arguments, path):
    command = [sys.executable, "-m", "tests.faults.checkpoint_cost", "--size", str(arguments.size)]
    command += ["--seconds", str(arguments.seconds), "--every", str(arguments.every), "--child", path]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(found.stderr)
    return json.loads(found.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10**7)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(measure(arguments.size, arguments.seconds, arguments.every, arguments.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            without, saving = child(arguments, ""), child(arguments, str(Path(folder) / "run.ckpt"))
            copies = (saving["peak"] - without["peak"]) / (4 * arguments.size)
            print(f"without {without}\nsaving  {saving}")
            print(
                f"time per update x {saving['mean'] / without['mean']:.4f} (median x "
                f"{saving['median'] / without['median']:.4f}), CPU time x {saving['cpu'] / without['cpu']:.4f}, "
                f"memory {copies:+.2f} copies of the weights"
            )
            for file in Path(folder).iterdir():
                file.unlink()


if __name__ == "__main__":
    main()
