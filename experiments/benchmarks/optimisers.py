"""Accuracy of every estimator with every optax transformation of `hypergrad.testing.optimisers`.

`python -m experiments.benchmarks.optimisers` writes docs/optimisers.md.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
import tyro

import hypergrad as hg
from hypergrad.testing import laws, problems
from hypergrad.testing.optimisers import LEARNED, SMOOTH
from hypergrad.testing.solver_laws import differences
from hypergrad.testing.tolerances import relative_error

STEPS, SOLVED = 6, 400
EXACT = 1e-6
REFUSED = {
    "L-BFGS with a line search": optax.lbfgs(),
    "backtracking line search": optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)),
    "lookahead": optax.lookahead(optax.sgd(0.1), 2, 0.5),
}
OWN = {"hypergrad.MomentumSGD": hg.MomentumSGD(0.1, 0.9)}
ESTIMATORS: dict[str, Callable[[hg.AbstractInnerSolver], hg.AbstractEstimator]] = {
    "Reverse": hg.Reverse,
    "Reverse, warm": lambda inner: hg.Reverse(inner, warm_start=True),
    "Reversible": hg.Reversible,
    "Forward": hg.Forward,
    "DrMAD, a line": hg.DrMAD,
    "DrMAD, every knot": lambda inner: hg.DrMAD(inner, knots=inner.num_steps),
    "Greedy, one step": lambda inner: hg.Greedy(inner.with_num_steps(1)),
    "Greedy": lambda inner: hg.Greedy(inner, warm_start=False),
    "OneStep": hg.OneStep,
    "Implicit": lambda inner: hg.Implicit(inner.with_num_steps(SOLVED), hg.CG(10, tol=1e-12)),
    "HOAG": lambda inner: hg.HOAG(inner.with_num_steps(SOLVED), hg.CG(10, tol=1e-12), schedule=lambda k: 1e-9),
}
HEAD = """# Optimisers and estimators

What every estimator does with every optax optimiser, measured by `python -m experiments.benchmarks.optimisers`.

Ridge regression with eight rows, one log penalty per weight, and learned log learning rates where the optimiser reads
them (the rows "learned" and "injected"), in float64. *exact*: the hypergradient is the derivative of the value, by
central differences, to 1e-6. A number: the relative error of an approximation, with the flags that its status has.
*refused*: a Python error that says what would work, before anything is compiled. *NONFINITE*: flagged so. {steps} steps
of training, {solved} for `Implicit` and `HOAG`, which are compared with the derivative through all of them: where the
optimiser has not arrived by then, they are off.

"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Try every optimiser under every estimator, and write the table."""

    out: Path = Path("docs/optimisers.md")  # The page.
    only: tuple[str, ...] = ()  # Names of optimisers; all by default.


def optimisers() -> dict[str, Any]:
    """Returns all that are tried, by name."""
    return OWN | SMOOTH | LEARNED | REFUSED


def cell(name: str, estimator: str) -> str:
    """Returns the result of one estimator with one optimiser, as a word or a number."""
    try:
        with jax.enable_x64(True):
            case = problems.tuned() if name in LEARNED else problems.ridge()
            made = ESTIMATORS[estimator](hg.OptaxSolver(optimisers()[name], STEPS))
            state = made.init(case.problem, case.params, case.hparams)
            estimate, _ = made.step(case.problem, case.hparams, state, laws.KEY)
            status = hg.Status(int(estimate.stats.status))
            if status & hg.Status.NONFINITE:
                return str(hg.Status.NONFINITE)
            value = lambda hparams: made.step(case.problem, hparams, state, laws.KEY)[0].value
            error = relative_error(estimate.hypergradient, differences(value, case.hparams))
    except (TypeError, ValueError):
        return "refused"
    flags = f" {status}" if status else ""
    return ("exact" if error <= EXACT else f"{error:.1g}") + flags


def row(name: str) -> str:
    """Returns one line of the table."""
    return " | ".join([f"| {name}", *(cell(name, estimator) for estimator in ESTIMATORS)]) + " |"


def main(config: Config) -> None:
    """Measures and writes."""
    jax.config.update("jax_disable_most_optimizations", True)  # nothing is timed, and most of the time is compilation
    names = config.only or tuple(optimisers())
    lines = [" | ".join(["| optimiser", *ESTIMATORS]) + " |", "|---" * (len(ESTIMATORS) + 1) + "|"]
    for name in names:
        lines.append(row(name))
        print(lines[-1], flush=True)
        jax.clear_caches()
    config.out.write_text(HEAD.format(steps=STEPS, solved=SOLVED) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
