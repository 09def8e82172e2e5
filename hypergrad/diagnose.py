"""A comparison of estimators with the exact hypergradient, before a long run."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .estimators.base import AbstractEstimator
from .estimators.drmad import DrMAD
from .estimators.reverse import Reverse
from .inner import AbstractInnerSolver
from .problem import BilevelProblem, as_hparams
from .stats import Status

RIGHT, ROUGH = 0.95, 0.7  # cosines from which a direction counts as right, and as a direction at all
COLOURS = {
    "right": "#009E73",
    "right direction": "#56B4E9",
    "rough": "#F0E442",
    "ill-conditioned": "#E69F00",
    "wrong": "#D55E00",
    "not finite": "#000000",
}
DISTURBANCE = 1e-4  # change of the first weights that the exact hypergradient should stand, see `stability`


@dataclasses.dataclass(frozen=True)
class Finding:
    """One estimator compared with the exact hypergradient of the same training.

    - `cosine`, `norm_ratio`: of the hypergradients, found over exact.
    - `runs`: time in training runs, the median of three, without compilation; `gradients`: gradient equivalents.
    - `memory`: bytes that XLA allocates for temporaries.
    - `growth`: largest adjoint over the first, where the estimator reports it, else NaN.
    - `error`: ‖found - exact‖/‖exact‖; `measured_error`: the same as the estimator measured it by itself, NaN where it
      does not.
    - `stability`: cosine of the *exact* hypergradient with itself after a random change of the first weights by 10⁻⁴ of
      their size and of what training changes.
    """

    name: str
    cosine: float
    norm_ratio: float
    runs: float
    gradients: int
    memory: int
    growth: float
    error: float
    measured_error: float
    stability: float
    status: Status
    steps: int

    @property
    def verdict(self) -> str:
        """`right` (cosine from 0.95), `right direction` (the same, but the norm off by a factor above 2), `rough` (from
        0.7), `wrong`, `not finite`, or `ill-conditioned` where the exact one is to blame."""
        if not np.isfinite(self.cosine):
            return "not finite"
        if self.cosine >= RIGHT:
            return "right" if 0.5 <= self.norm_ratio <= 2 else "right direction"
        if self.stability < RIGHT:
            return "ill-conditioned"
        return "rough" if self.cosine >= ROUGH else "wrong"

    @property
    def warning(self) -> str | None:
        """The reason not to trust it, `None` where there is none."""
        about = f"{self.name}: cosine {self.cosine:.2f} with the exact hypergradient over {self.steps} steps"
        return {
            "rough": f"{about}; use exact hypergradients near the end",
            "wrong": f"{about}, norm {self.norm_ratio:.3g} times the right one; do not trust it here",
            "not finite": f"{self.name}: a hypergradient that is not finite over {self.steps} steps",
            "ill-conditioned": f"{about}; but that one has cosine {self.stability:.2f} with itself when the first "
            "weights change by 1e-4: training is chaotic; lower the learning rate, take a shorter horizon, "
            "or smooth the outer loss with ES, PES, NRES or Combined",
        }.get(self.verdict)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All findings; prints as a table with its warnings."""

    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> list[str]:
        """One sentence for every estimator that should not be trusted."""
        return [found.warning for found in self.findings if found.warning]

    @property
    def ranked(self) -> list[Finding]:
        """The findings by their error, the smallest first."""
        return sorted(self.findings, key=lambda found: found.error if np.isfinite(found.error) else np.inf)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one dictionary per estimator, for a CSV or a data frame."""
        return [
            dataclasses.asdict(found) | {"status": found.status.name or "OK", "verdict": found.verdict}
            for found in self.findings
        ]

    def __str__(self) -> str:
        """Shows an aligned table, then the warnings."""
        head = ("estimator", "cosine", "norm ratio", "error", "measured", "runs", "memory MB", "growth", "verdict")
        rows = [head]
        for f in self.findings:
            known = lambda number: "-" if np.isnan(number) else f"{number:.3g}"
            numbers = (f"{f.cosine:.4f}", f"{f.norm_ratio:.3g}", f"{f.error:.2g}", known(f.measured_error))
            rows.append((f.name, *numbers, f"{f.runs:.2f}", f"{f.memory / 1e6:.3f}", known(f.growth), f.verdict))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"! {text}" for text in self.warnings)])

    def plot(self, path: str | None = None) -> Any:
        """Draws cosine, time and memory side by side, saves the figure where a path is given, and returns it."""
        try:
            from matplotlib.figure import Figure
            from matplotlib.patches import Patch
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'hypergrad-jax[plot]'") from error
        names = [found.name for found in self.findings]
        figure = Figure(figsize=(10, 1.5 + 0.35 * len(names)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        paint = [COLOURS[found.verdict] for found in self.findings]
        series = (
            ("cosine with the exact hypergradient", [np.nan_to_num(f.cosine) for f in self.findings]),
            ("time in training runs", [f.runs for f in self.findings]),
            ("temporary memory, MB", [f.memory / 1e6 for f in self.findings]),
        )
        for axes, (label, values) in zip(panels, series, strict=True):
            axes.barh(names, values, color=paint)
            axes.set_xlabel(label)
            axes.grid(axis="x", alpha=0.3)
        panels[0].set_xlim(min(0, *series[0][1]) * 1.05, 1.02)
        panels[0].axvline(RIGHT, color="black", lw=0.8, ls=":")
        panels[2].set_xscale("log")
        seen = dict.fromkeys(found.verdict for found in self.findings)
        figure.legend([Patch(color=COLOURS[name]) for name in seen], seen, loc="outside upper right", ncols=len(seen))
        panels[0].invert_yaxis()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def diagnose(
    problem: BilevelProblem,
    estimators: Mapping[str, AbstractEstimator] | Sequence[AbstractEstimator] | AbstractEstimator,
    params: PyTree,
    hparams: PyTree,
    *,
    key: Array,
    num_steps: int | None = None,
) -> Diagnosis:
    """Compares estimators with exact reverse mode through the same training, once, from `params`.

    **Arguments**

    - `estimators`: one, several, or several by name; each with its own field `inner`.
    - `num_steps`: train every one for so many steps: a horizon short enough to afford the exact hypergradient.
      Approximations may get worse over longer ones: compare two horizons before a long run.

    *Cost*: per estimator its own step four times; per inner solver two exact hypergradients (√T checkpoints).

    **Raises** what the estimators' `init` raises, and `ValueError` where the exact hypergradient is zero or not finite.
    """
    if isinstance(estimators, AbstractEstimator):
        estimators = [estimators]
    named = estimators if isinstance(estimators, Mapping) else {_name(e): e for e in estimators}
    if not named:
        raise ValueError("estimators is empty")
    hparams = as_hparams(hparams)
    references: list[tuple[AbstractInnerSolver, np.ndarray, float, float]] = []
    findings = []
    for name, estimator in named.items():
        estimator = _shortened(estimator, num_steps)
        inner = estimator.inner
        known = next((r for r in references if r[0] is inner or eqx.tree_equal(r[0], inner) is True), None)
        if known is None:
            known = (inner, *_reference(problem, inner, params, hparams, key))
            references.append(known)
        findings.append(_examine(name, estimator, problem, params, hparams, key, *known[1:]))
    return Diagnosis(tuple(findings))


def fewest_knots(
    problem: BilevelProblem,
    estimator: DrMAD,
    params: PyTree,
    hparams: PyTree,
    *,
    key: Array,
    cosine: float = RIGHT,
) -> tuple[int, Diagnosis]:
    """Returns the fewest knots, of 1, 2, 4 and so on up to T, with which `estimator` reaches a similarity of
    `cosine` with the exact hypergradient, and the findings on the way. It is T where only the exact path will do."""
    total, hparams = estimator.inner.num_steps, as_hparams(hparams)
    ladder = [*(2**k for k in range(total.bit_length()) if 2**k < total), total]
    reference = _reference(problem, estimator.inner, params, hparams, key)
    tried: list[Finding] = []
    for knots in ladder:
        one = dataclasses.replace(estimator, knots=knots)
        tried.append(_examine(f"knots={knots}", one, problem, params, hparams, key, *reference))
        if tried[-1].cosine >= cosine:
            break
    return knots, Diagnosis(tuple(tried))


def _shortened(estimator: Any, num_steps: int | None) -> Any:
    if num_steps is None:
        return estimator
    return dataclasses.replace(estimator, inner=estimator.inner.with_num_steps(num_steps))


def _name(estimator: AbstractEstimator) -> str:
    """Returns the class with the fields that differ from their defaults, without the inner solver."""
    fields = [f for f in dataclasses.fields(estimator) if f.name != "inner"]
    changed = [f for f in fields if getattr(estimator, f.name) is not f.default]
    texts = [f"{f.name}={eqx.tree_pformat(getattr(estimator, f.name), width=200)}" for f in changed]
    return f"{type(estimator).__name__}({', '.join(texts)})"


def _flat(tree: PyTree) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size > 0 else float("nan")


def _reference(problem, inner, params, hparams, key) -> tuple[np.ndarray, float, float]:
    """Returns the exact hypergradient, its stability, and the seconds of one training run."""
    steps = {name: option for name, option in inner.options.items() if name != "tol"}  # all of them
    estimator = Reverse(eqx.tree_at(lambda inner: inner.options, inner, steps), checkpoints="sqrt")
    state = estimator.init(problem, params, hparams)
    estimate, _ = estimator.step(problem, hparams, state, key)
    exact = _flat(estimate.hypergradient)
    if not np.all(np.isfinite(exact)) or not np.any(exact):
        raise ValueError(
            "the exact hypergradient is zero or not finite: there is nothing to compare with; ES estimates that of a "
            "smoothed loss"
        )
    first, last = (ravel_pytree(one.partitioned.arrays)[0] for one in (state.inner, estimate))
    _, unravel = ravel_pytree(state.inner.partitioned.arrays)
    noise = jax.random.normal(jax.random.fold_in(key, 2**30), first.shape, first.dtype)
    # Relative to the weights, and to what training changes: weights may start at zero.
    typical = jnp.abs(first) + jnp.sqrt(jnp.mean(jnp.abs(last - first) ** 2))
    moved = state.inner.partitioned.with_arrays(unravel(first + DISTURBANCE * typical * noise))
    elsewhere = eqx.tree_at(lambda s: s.inner.partitioned, state, moved)
    stability = _cosine(_flat(estimator.step(problem, hparams, elsewhere, key)[0].hypergradient), exact)
    train = lambda *args: inner.solve(*args)[0].partitioned.arrays
    seconds, _, _ = _timed(train, problem, hparams, state.inner, key)
    return exact, stability, seconds


def _timed(function, *args) -> tuple[float, int, Any]:
    """Returns the seconds per call, the bytes of temporary memory, and the result."""
    arrays, rest = eqx.partition(args, eqx.is_array)
    compiled = jax.jit(lambda arrays: function(*eqx.combine(arrays, rest))).lower(arrays).compile()
    memory = compiled.memory_analysis()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        result = jax.block_until_ready(compiled(arrays))
        times.append(time.perf_counter() - started)
    return float(np.median(times)), memory.temp_size_in_bytes if memory else 0, result


def _examine(name, estimator, problem, params, hparams, key, exact, stability, run_seconds) -> Finding:
    state = estimator.init(problem, params, hparams)

    def step(*args):
        estimate, _ = estimator.step(*args)
        return estimate.hypergradient, estimate.stats

    seconds, memory, (hypergradient, stats) = _timed(step, problem, hparams, state, key)
    found = _flat(hypergradient)
    return Finding(
        name=name,
        cosine=_cosine(found, exact) if np.all(np.isfinite(found)) else float("nan"),
        norm_ratio=float(np.linalg.norm(found) / np.linalg.norm(exact)),
        runs=seconds / run_seconds,
        gradients=int(stats.counts.gradients),
        memory=memory,
        growth=float(stats.diagnostics.get("growth", jnp.nan)),
        error=float(np.linalg.norm(found - exact) / np.linalg.norm(exact)),
        measured_error=float(stats.diagnostics.get("relative_error", jnp.nan)),
        stability=stability,
        status=Status(int(stats.status)),
        steps=estimator.inner.num_steps,
    )
