"""The findings of `diagnose`: numbers, a verdict for each estimator, a table and a plot."""

import dataclasses
from typing import Any

import numpy as np

from .ground.show import new_figure, save_figure
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


@dataclasses.dataclass(frozen=True)
class Finding:
    """One estimator compared with the exact hypergradient of the same training.

    - `cosine`, `norm_ratio`: of the hypergradients, found over exact.
    - `runs`: time of a step in training runs, the median of three, without compilation and without the check of the
      first step; `gradients`: gradient equivalents of the first step.
    - `memory`: bytes that XLA allocates for temporaries.
    - `growth`: largest adjoint over the first, where the estimator reports it, else NaN.
    - `error`: ‖found - exact‖/‖exact‖; `measured_error`: the same as the estimator measured it by itself, and
      `error_bound`: its bound on the error relative to the solved inner problem; NaN where it gives none.
    - `spread`: ‖standard deviation‖/‖mean‖ of the hypergradient over keys, 0 where it depends on none, NaN where it was
      not measured.
    - `stability`: 2 a·b/(‖a‖² + ‖b‖²) of the *exact* hypergradients a at the first weights and b at weights that differ
      by 10⁻⁴ of their size and of what training changes; 1 where they are equal.
    - `state_share`: ‖g - g_s‖/‖g‖ of the *exact* hypergradients g through the state of layers and g_s with that state
      as a constant: what implicit estimators and single loops leave out. 0 where layers have no state.
    - `sigma`: where the verdict is `ill-conditioned`, the width σ over which `ES` should smooth the outer loss, the
      largest of nine at which the noise of 32 pairs is at most 0.48 of the signal; NaN if there is none, or for other
      verdicts. `advice` says it in words.
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
    error_bound: float
    spread: float
    stability: float
    status: Status
    steps: int
    state_share: float
    sigma: float = float("nan")
    advice: str | None = None

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
    def is_silent(self) -> bool:
        """True if the status is OK although the hypergradient is not right."""
        return self.verdict != "right" and self.status == Status.OK

    @property
    def warning(self) -> str | None:
        """The reason not to trust it, `None` where there is none."""
        about = f"{self.name}: cosine {self.cosine:.2f} with the exact hypergradient over {self.steps} steps"
        silent = "; its own status is OK" if self.is_silent else ""
        text = {
            "rough": f"{about}; use exact hypergradients near the end",
            "wrong": f"{about}, norm {self.norm_ratio:.3g} times the right one; do not trust it here",
            "not finite": f"{self.name}: a hypergradient that is not finite over {self.steps} steps",
            "ill-conditioned": f"{about}; but that one agrees to {self.stability:.2f} with itself when the first "
            "weights change by 1e-4: training is chaotic; lower the learning rate or take a shorter horizon"
            + (f"; {self.advice}" if self.advice else ""),
        }.get(self.verdict)
        return None if text is None else text + silent


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
        measures = ("cosine", "norm ratio", "error", "measured", "bound", "spread", "runs", "memory MB", "growth")
        rows = [("estimator", *measures, "status", "verdict")]
        known = lambda number, form=".2g": "-" if np.isnan(number) else f"{number:{form}}"
        for f in self.findings:
            errors = (f"{f.error:.2g}", known(f.measured_error), known(f.error_bound), known(f.spread))
            costs = (f"{f.runs:.2f}", f"{f.memory / 1e6:.3f}", known(f.growth, ".3g"))
            rows.append((f.name, f"{f.cosine:.4f}", f"{f.norm_ratio:.3g}", *errors, *costs, str(f.status), f.verdict))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        shares = {f"{f.state_share:.2g}" for f in self.findings if f.state_share}
        notes = [f"the state of layers taken as constant leaves out {share} of the hypergradient" for share in shares]
        return "\n".join([*lines, *notes, *(f"! {text}" for text in self.warnings)])

    def plot(self, path: str | None = None) -> Any:
        """Draws cosine, time and memory side by side, saves the figure where a path is given, and returns it."""
        names = [found.name for found in self.findings]
        figure = new_figure(10, 1.5 + 0.35 * len(names))
        panels = figure.subplots(1, 3, sharey=True)
        paint = [COLOURS[found.verdict] for found in self.findings]
        series = (
            ("cosine with the exact hypergradient", [np.nan_to_num(f.cosine) for f in self.findings]),
            ("time in training runs", [f.runs for f in self.findings]),
            ("temporary memory, MB", [f.memory / 1e6 for f in self.findings]),
        )
        for axes, (label, values) in zip(panels, series, strict=True):
            bars = axes.barh(names, values, color=paint)
            axes.set_xlabel(label)
            axes.grid(axis="x", alpha=0.3)
        panels[0].set_xlim(min(0, *series[0][1]) * 1.05, 1.02)
        panels[0].axvline(RIGHT, color="black", lw=0.8, ls=":")
        if max(series[2][1]) > 100 * max(min(series[2][1]), 1e-9):  # below, the labels of a logarithmic axis overlap
            panels[2].set_xscale("log")
        seen = {found.verdict: bar for found, bar in zip(self.findings, bars, strict=True)}
        figure.legend(seen.values(), seen.keys(), loc="outside upper right", ncols=len(seen))
        panels[0].invert_yaxis()
        if path is not None:
            save_figure(figure, path)
        return figure
