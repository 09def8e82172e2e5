"""Trains on a stream much larger than memory, and prints memory and waiting time; kills and resumes another.

python -m tests.faults.stream --gigabytes 20
python -m tests.faults.stream --kills 10
"""

import argparse
import os
import random
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
from hypergrad.data.stream import Stream
from hypergrad.ground.identity import digest

from tests.faults.kill import SHARED, finish
from tests.helpers import ROOT

SIZE, FEATURES, STEPS = 4096, 256, 8
BYTES = SIZE * FEATURES * 4


class Rows:
    """Generated rows, with a state."""

    def __init__(self):
        self.number = 0
        self.noise = np.random.default_rng(0).normal(size=(2 * SIZE, FEATURES)).astype(np.float32)

    def __iter__(self):
        return self

    def __next__(self):
        first, self.number = self.number * 977 % SIZE, self.number + 1
        x = self.noise[first : first + SIZE] + np.float32(1e-3 * (self.number % 7))
        return {"x": x, "y": x[:, 0] - x[:, 1]}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def inner_loss(w, hparams, data, key):
    hidden = jnp.tanh(data["x"] @ w["first"])
    return jnp.mean((hidden @ w["last"] - data["y"]) ** 2) + jnp.exp(hparams) * optax.tree.norm(w, squared=True)


def outer_loss(w, hparams, data, key):
    return inner_loss(w, -20.0, data, key)


def begin():
    example = next(Rows())
    problem = hg.BilevelProblem(inner_loss, outer_loss, example, jax.tree.map(lambda leaf: leaf[:512], example))
    search = hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.adam(1e-3), STEPS)), optax.adam(0.01))
    rng = np.random.default_rng(1)
    params = {"first": rng.normal(size=(FEATURES, 256), scale=0.06), "last": rng.normal(size=256, scale=0.1)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return search, problem, search.init(problem, params, jnp.asarray(-6.0, jnp.float32))


def resident():
    """Returns the bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(gigabytes):
    """Reads so many gigabytes, and prints memory and the share of the time in which the search waited for data."""
    search, problem, state = begin()
    memory, times, waits, following = [], [], [0.0], Stream.next

    def timed(stream, step):
        begun = time.monotonic()
        found = following(stream, step)
        waits.append(time.monotonic() - begun)
        return found

    Stream.next = timed
    number = int(gigabytes * 1e9 / BYTES / STEPS)

    def watch(state, history):
        memory.append(resident())
        times.append(time.monotonic())

    hg.run(
        search, problem, state, key=jax.random.key(0), budget=number * STEPS, stream=Rows(), callback=watch,
        keep=lambda record: record.value,
    )  # fmt: skip
    tenth = max(len(memory) // 10, 1)
    share = sum(waits[tenth + 2 :]) / (times[-1] - times[tenth])
    print(f"{number * STEPS * BYTES / 1e9:.1f} GB in {times[-1] - times[0]:.0f} s, waiting {share:.1%} of the time")
    print(f"memory after a tenth {memory[tenth] / 1e6:.0f} MB, at most since {max(memory[tenth:]) / 1e6:.0f} MB")


def victim(file):
    """Trains from the checkpoint on, and prints a digest of the result."""
    search, problem, state = begin()
    print("begins", flush=True)
    state, history = hg.run(
        search, problem, state, key=jax.random.key(0), budget=40 * STEPS, stream=Rows(), checkpoint=file, every=0,
        chunk=2,
    )  # fmt: skip
    assert int(state.num_steps) == len(history) == 40
    print(digest((jax.tree.leaves(state), jax.tree.leaves(history))), flush=True)


def kill(number):
    """Kills the victim at random moments until it is finished, and compares the bits."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | SHARED | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/programs", "JAX_ENABLE_X64": "0"}
        command = [sys.executable, "-m", "tests.faults.stream", "--victim"]
        start = lambda file: subprocess.Popen(
            [*command, file], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        finish(start(f"{folder}/warm.ckpt"))  # fills the cache of programs
        process = start(f"{folder}/whole.ckpt")
        process.stdout.readline()
        begun = time.monotonic()
        wanted = finish(process)
        longest, generator, killed = time.monotonic() - begun, random.Random(0), 0
        for _ in range(number):
            process = start(f"{folder}/killed.ckpt")
            process.stdout.readline()
            time.sleep(generator.uniform(0.3, 0.6) * longest)
            process.kill()
            killed += process.wait() != 0
        same = finish(start(f"{folder}/killed.ckpt")) == wanted
        print(f"killed {killed} times in {longest:.1f} s of work: {'the same bits' if same else 'OTHER BITS'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--victim")
    arguments = parser.parse_args()
    if arguments.gigabytes:
        measure(arguments.gigabytes)
    if arguments.kills:
        kill(arguments.kills)
    if arguments.victim:
        victim(arguments.victim)


if __name__ == "__main__":
    main()
