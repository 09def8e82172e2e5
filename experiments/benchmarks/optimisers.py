"""Accuracy of every estimator with every optax transformation of `hypergrad.testing.optimisers`.

`python -m experiments.benchmarks.optimisers` writes docs/optimisers.md. Finished cells are kept in `--out`, so that the
same command goes on where it was stopped, and two of them with other `--only` share the work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax

import hypergrad as hg
from hypergrad.testing import laws, problems
from hypergrad.testing.optimisers import LEARNED, SMOOTH
from hypergrad.testing.solver_laws import differences
from hypergrad.testing.tolerances import relative_error

from ..common.cells import Cells
from ..common.command import command
from ..common.config import Options
from ..common.report import environment, made_by

STEPS, SOLVED = 6, 400
PAIRS, SIGMA, TRUNCATIONS = 1024, 0.01, 2
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
    "Implicit": lambda inner: hg.Implicit(inner.with_num_steps(SOLVED), hg.CG(10, rtol=1e-12)),
    "HOAG": lambda inner: hg.HOAG(inner.with_num_steps(SOLVED), hg.CG(10, rtol=1e-12), schedule=lambda k: 1e-9),
    "ES": lambda inner: hg.ES(inner, PAIRS, sigma=SIGMA),
    "PES": lambda inner: hg.PES(inner, STEPS // TRUNCATIONS, PAIRS, sigma=SIGMA),
    "NRES": lambda inner: hg.NRES(inner, STEPS // TRUNCATIONS, PAIRS, sigma=SIGMA),
    "Combined": lambda inner: hg.Combined(hg.Reverse(inner), hg.ES(inner, PAIRS, sigma=SIGMA)),
}
STATIONARY = ("Implicit", "HOAG")
CALLS = {"PES": TRUNCATIONS, "NRES": TRUNCATIONS}
"""The steps of an estimator in one training, where it is not one."""
HEAD = """# Optimisers and estimators

```sh
python -m experiments.benchmarks.optimisers
```

{made}

What every estimator does with every optax optimiser.

Ridge regression with eight rows, one log penalty per weight, and learned log learning rates where the optimiser reads
them (the rows "learned" and "injected"), in float64. *exact*: the hypergradient is the derivative of the value, by
central differences, to 1e-6. A number: the relative error of an approximation, with the flags that its status has.
*refused*: a Python error that says what would work, before anything is compiled. *NONFINITE*: flagged so. {steps} steps
of training, {solved} for `Implicit` and `HOAG`, which are compared with the closed form of the solved inner problem:
where the optimiser has not arrived by then, they are off. Evolution strategies have {pairs} pairs of σ = {sigma}; their
errors are noise, and that of `PES` and `NRES` is of the sum over the {truncations} truncations of one training.

"""


@dataclass(frozen=True)
class Config(Options):
    """Try every optimiser under every estimator, and write the table."""

    out: Path = Path("results/optimisers")  # Folder of what is measured so far.
    page: Path = Path("docs/optimisers.md")  # The table.
    only: tuple[str, ...] = ()  # Names of optimisers to measure, without a table; all and the table by default.


def optimisers() -> dict[str, Any]:
    """Returns all that are tried, by name."""
    return OWN | SMOOTH | LEARNED | REFUSED


def cell(name: str, estimator: str) -> str:
    """Returns the result of one estimator with one optimiser, as a word or a number."""
    try:
        with jax.enable_x64(True):
            case = problems.tuned() if name in LEARNED else problems.ridge()
            made = ESTIMATORS[estimator](hg.OptaxSolver(optimisers()[name], STEPS))
            start, calls = made.init(case.problem, case.params, case.hparams), CALLS.get(estimator, 1)
            found = trained(made, case, start, case.hparams, calls)
            status = hg.Status(int(found.stats.status))
            if status & hg.Status.NONFINITE:
                return str(hg.Status.NONFINITE)
            value = lambda hparams: trained(made, case, start, hparams, calls).value
            true = case.exact() if estimator in STATIONARY else differences(value, case.hparams)
            error = relative_error(found.hypergradient, true)
    except (TypeError, ValueError):
        return "refused"
    flags = f" {status}" if status else ""
    return ("exact" if error <= EXACT else f"{error:.1g}") + flags


def trained(estimator: hg.AbstractEstimator, case: problems.Case, state: Any, hparams: Any, calls: int) -> hg.Estimate:
    """Returns the estimate of one training in so many steps: values and hypergradients added, statuses joined."""
    total, state = estimator.step(case.problem, hparams, state, laws.KEY)
    for call in range(1, calls):
        more, state = estimator.step(case.problem, hparams, state, jax.random.fold_in(laws.KEY, call))
        stats = total.stats.also(more.stats.counts, more.stats.status)
        hypergradient = optax.tree.add(total.hypergradient, more.hypergradient)
        total = hg.Estimate(hypergradient, total.value + more.value, more.partitioned, stats)
    return total


def row(store: Cells, name: str) -> str:
    """Returns one line of the table, from cells that are measured where they are not stored."""
    cells = [
        store.get({"optimiser": name, "estimator": estimator}, lambda estimator=estimator: cell(name, estimator))
        for estimator in ESTIMATORS
    ]
    return " | ".join([f"| {name}", *cells]) + " |"


def main(config: Config) -> None:
    """Measures and writes."""
    jax.config.update("jax_disable_most_optimizations", True)  # nothing is timed, and most of the time is compilation
    store = Cells(Options(config.out, cache=config.cache))
    lines = [" | ".join(["| optimiser", *ESTIMATORS]) + " |", "|---" * (len(ESTIMATORS) + 1) + "|"]
    for name in config.only or optimisers():
        lines.append(row(store, name))
        print(lines[-1], flush=True)
        jax.clear_caches()
    if not config.only:
        made = made_by("python -m experiments.benchmarks.optimisers", environment())
        sizes = {
            "made": made,
            "steps": STEPS,
            "solved": SOLVED,
            "pairs": PAIRS,
            "sigma": SIGMA,
            "truncations": TRUNCATIONS,
        }
        config.page.write_text(HEAD.format(made=made, **sizes) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    command(main, Config(), "benchmarks.optimisers")
