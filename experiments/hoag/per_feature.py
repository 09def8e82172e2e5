"""One penalty per feature: 1,000 of them, against what the reference code spent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from ..benchmarks.problems import PROBLEMS
from . import model

DATA = "P1, one penalty per feature"
REFERENCE_COST = 36_593 + 11_679  # gradients and Hessian-vector products of the reference code
REFERENCE_LOSS = 0.296
MOST = 200
BOX = 6.0  # as in the reference code


def make_search() -> hg.GradientSearch:
    """Returns HOAG with the exponential schedule and the adaptive step."""
    estimator = hg.HOAG(model.lbfgs(MOST), hg.CG(100, tol=0.0))
    return hg.GradientSearch(
        estimator, hg.adaptive_step(), projection=lambda log_penalty: jnp.clip(log_penalty, -BOX, BOX)
    )


def run_seed(search: hg.GradientSearch, seed: int, budget: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the summary of one seed, and its mean validation loss against work."""
    case = PROBLEMS["P1"](seed)
    rows, mean_loss = len(case.problem.valid[1]), case.problem.outer_loss
    summed = lambda *args: rows * mean_loss(*args)
    problem = hg.BilevelProblem(case.problem.inner_loss, summed, case.problem.train, case.problem.valid)
    state = search.init(problem, case.params, case.hparams)
    _, history = hg.run(search, problem, state, key=jax.random.key(0), budget=hg.Budget(gradients=budget))
    counts = history.stats.counts
    losses, work = np.asarray(history.value) / rows, np.cumsum(counts.gradients)
    reached = losses <= REFERENCE_LOSS
    summary = {
        "method": "HOAG, exponential",
        "first_loss": float(losses[0]),
        "best_loss": float(losses.min()),
        "gradients_to_reference": int(work[np.argmax(reached)]) if reached.any() else None,
        "gradients": int(work[-1]),
        "rises": int(np.sum(np.diff(losses) > 0)),
        "largest_rise": float(max(np.diff(losses).max(initial=0), 0)),
        "inner_limit_hits": int(np.sum(counts.iterations >= MOST)),
    }
    course = [{"gradients": int(g), "loss": float(loss)} for g, loss in zip(work, losses, strict=True)]
    return {"runs": [summary], "history": course}
