"""Programs that are killed. Each goes on from its folder, and prints the digest of its result when it is finished.

python -m tests.faults.victims ensemble FOLDER
"""

import hashlib
import json
import multiprocessing
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensembles
import hypergrad as hg
from hypergrad.ground.identity import digest
from hypergrad.testing import laws
from hypergrad.testing.problems import net, ridge

STEPS = 90
COMPARE = ["--methods", "greedy", "random_scalar", "tpe", "--seeds", "3", "--budget", "100", "--trial-steps", "50"]
SPACE = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0), "n": hg.trials.Int(1, 9)})


def begins():
    """Says that what comes now is work."""
    print("begins", flush=True)


def repeat(search, problem, state, folder):
    """Runs so many steps with a checkpoint, and returns the digest of state and history."""
    begins()
    state, history = hg.run(
        search,
        problem,
        state,
        key=laws.KEY,
        budget=5 * STEPS,
        chunk=3,
        checkpoint=folder / "run.ckpt",
        every=0,  # so that most moments lie within a write
        callback=lambda *_: time.sleep(0.02),
    )
    assert int(state.num_steps) == len(history) == STEPS
    return digest((jax.tree.leaves(state), jax.tree.leaves(history)))


def single(folder):
    """Trains a network by DrMAD from a warm start."""
    search = hg.GradientSearch(hg.DrMAD(hg.OptaxSolver(optax.adam(0.05), 5), warm_start=True), optax.adam(0.1))
    case = net()
    return repeat(search, case.problem, search.init(case.problem, case.params, case.hparams), folder)


def ensemble(folder):
    """Trains ridge regression in eight replicas."""
    case = ridge()
    replicated = ensembles.replicate_loss(case.problem.inner_loss)
    outer = ensembles.replicate_loss(case.problem.outer_loss)
    problem = hg.BilevelProblem(replicated, outer, case.problem.train, case.problem.valid)
    optimiser = ensembles.replicate_optimiser(optax.adam(0.05))
    search = hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optimiser, 5), warm_start=True), optax.adam(0.1))
    params = jnp.asarray(np.random.default_rng(0).normal(size=(8, *case.params.shape)))
    return repeat(search, problem, search.init(problem, params, case.hparams), folder)


def main_job(folder):
    """Runs the comparison of all methods, at a small budget, and returns the digest of its cells without times."""
    from experiments.common.command import command
    from experiments.compare.run import Config, main

    begins()
    sys.argv[1:] = [*COMPARE, "--out", str(folder)]
    command(main, Config(), "compare")
    cells = {path.name: without_times(json.loads(path.read_text())["result"]) for path in folder.glob("cells/*.json")}
    assert len(cells) == 9
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def without_times(tree):
    if isinstance(tree, dict):
        return {name: without_times(part) for name, part in tree.items() if "seconds" not in name}
    return [without_times(part) for part in tree] if isinstance(tree, list) else tree


def train(trial, key):
    time.sleep(0.1)
    return float(jax.random.uniform(key)) + trial.params["x"] / trial.params["n"]


def processes(folder):
    """Searches with four processes, and returns the digest of all trials and values."""
    begins()
    state = hg.trials.search_trials(
        hg.trials.Sobol(),
        SPACE,
        hg.trials.Processes(train, workers=4),
        key=jax.random.key(0),
        num_trials=24,
        batch=4,
        journal=folder / "search.jsonl",
        callback=lambda _: print("processes", *(one.pid for one in multiprocessing.active_children()), flush=True),
    )
    found = [(one.trial.number, one.trial.params, one.result.value) for one in state.history]
    assert sorted(number for number, *_ in found) == list(range(24))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


VICTIMS = {"single": single, "ensemble": ensemble, "main": main_job, "processes": processes}

if __name__ == "__main__":
    print(VICTIMS[sys.argv[1]](Path(sys.argv[2])), flush=True)
