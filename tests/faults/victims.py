"""Runs that are killed. Each goes on from its file, and prints the digest of its result when it is finished.

python -m tests.faults.victims ensemble run.ckpt
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensembles
import hypergrad as hg
from hypergrad.ground.identity import digest
from hypergrad.testing import laws
from hypergrad.testing.problems import net, ridge


def single():
    """A network trained by DrMAD from a warm start."""
    search = hg.GradientSearch(hg.DrMAD(hg.OptaxSolver(optax.adam(0.05), 5), warm_start=True), optax.adam(0.1))
    case = net()
    return search, case.problem, search.init(case.problem, case.params, case.hparams), 5


def ensemble():
    """Ridge regression in eight replicas."""
    case = ridge()
    replicated = ensembles.replicate_loss(case.problem.inner_loss)
    outer = ensembles.replicate_loss(case.problem.outer_loss)
    problem = hg.BilevelProblem(replicated, outer, case.problem.train, case.problem.valid)
    optimiser = ensembles.replicate_optimiser(optax.adam(0.05))
    search = hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optimiser, 5), warm_start=True), optax.adam(0.1))
    params = jnp.asarray(np.random.default_rng(0).normal(size=(8, *case.params.shape)))
    return search, problem, search.init(problem, params, case.hparams), 5


VICTIMS = {"single": single, "ensemble": ensemble}
STEPS = 90


def main():
    name, file = sys.argv[1:]
    search, problem, state, steps = VICTIMS[name]()
    print("begins", flush=True)
    state, history = hg.run(
        search,
        problem,
        state,
        key=laws.KEY,
        budget=steps * STEPS,
        chunk=3,
        checkpoint=file,
        every=0,  # so that most moments lie within a write
        callback=lambda *_: time.sleep(0.02),
    )
    assert int(state.num_steps) == len(history) == STEPS
    print(digest((jax.tree.leaves(state), jax.tree.leaves(history))), flush=True)


if __name__ == "__main__":
    main()
