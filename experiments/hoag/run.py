"""The comparison on one penalty, and HOAG on one penalty per feature."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..common import binary
from ..common.cells import Advance, grid, rows, run_cells
from ..common.config import Out, Positive, Some, WithData
from ..common.figures import COLOURS, figure, suboptimality_panels
from ..common.report import Row, grouped, mean_and_spread, save, text_table
from . import model, per_feature
from .search import METHODS, MethodName, Searches, Start, cost_to, judged

QUICK = {"data": ("breast_cancer",), "seeds": 2, "budget": 400, "feature_seeds": 1}
LEVELS = (1e-2, 1e-4, 1e-6)


@dataclass(frozen=True)
class Config(WithData):
    """Find the l2 penalty of a logistic regression: HOAG against exact hypergradients, grid and random search.

    Inner training is L-BFGS, started warm by every method; HOAG's tolerances fall exponentially, quadratically,
    cubically, or are tight from the start (exact); implicit has a fixed tight tolerance as well. All move the
    log-penalty with the adaptive step. Grid and random search train every penalty to the same tight tolerance. Every
    method may spend the same number of gradient equivalents. What counts is the exact validation loss at the best
    penalty so far, above the minimum over all penalties.

    Then HOAG learns one penalty per feature (1,000) on a synthetic problem in at most 30 steps, with a tenth of what
    the reference code spent on another draw of the same problem.

    After Pedregosa (2016), section 5, whose results are figures. Ours: data sets, their splits in three equal parts,
    the start at a strong penalty, and float64, without which 1e-6 could not be seen.
    """

    data: Some[binary.Name] = ("breast_cancer", "ijcnn1", "a9a")
    """Data sets. Those that are not found are left out, which is said."""
    methods: Some[MethodName] = METHODS  # Methods to run.
    rows: Positive = 6000  # Most rows of each data set, a third for each part.
    start: float = 8.0  # Log-penalty that descent starts from.
    budget: Positive = 1000  # Gradient equivalents per method and seed.
    feature_budget: Positive = per_feature.REFERENCE_COST // 10  # Gradient equivalents for one penalty per feature.
    feature_seeds: Positive = 5  # Repetitions of that part.
    out: Out = Path("results/hoag")

    def __post_init__(self):
        super().__post_init__()
        if self.rows < 30:
            raise ValueError(f"rows must be at least 30, got {self.rows}")
        if not model.BOX[0] <= self.start <= model.BOX[1]:
            raise ValueError(f"start must be in the box {model.BOX}, got {self.start}")


def one_penalty(
    config: Config, searches: Searches, source: binary.Source, seed: int, advance: Advance
) -> dict[str, list[Row]]:
    """Returns all methods on one split: their summaries, and their paths."""
    data = binary.thirds(binary.load(source), seed, config.rows)
    problem, params = model.make_problem(data.train, data.valid)
    fresh = searches.inner.init(problem, params, np.asarray(model.BOX[1]))
    curve, runs, history = model.exact_curve(searches.train, problem, fresh), [], []
    for name in config.methods:
        start = Start(problem, params, config.start, seed)
        path = judged(searches.path(name, start, config.budget), curve)
        chosen = min(path, key=lambda line: float(curve.loss(line["log_penalty"])))["log_penalty"]
        trained = searches.train(problem, chosen, fresh, model.EXACT).state.params
        costs: Row = {
            f"{unit}_to_{level:.0e}": cost_to(path, level, unit)
            for unit in ("gradients", "seconds")
            for level in LEVELS
        }
        losses: Row = {
            "suboptimality": path[-1]["suboptimality"],
            "test_loss": float(model.misfit(trained, tuple(data.test))) / len(data.test.y),
        }
        runs.append({"method": name, "log_penalty": chosen, "steps": len(path)} | costs | losses)
        history += [{"method": name} | line for line in path]
        advance(len(runs) / len(config.methods))
    return {"runs": runs, "history": history}


def reached(values: list[float | None]) -> str:
    """Returns the median of the runs that got there, and their number unless all did."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    return f"{np.median(there):.3g}" + ("" if len(there) == len(values) else f" ({len(there)} of {len(values)})")


def table_of(runs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns one line per data set and method."""
    lines = []
    for ours in grouped(runs, ("data", "method")):
        costs = [f"gradients_to_{level:.0e}" for level in LEVELS] + [f"seconds_to_{LEVELS[1]:.0e}"]
        lines.append(
            {name: ours[0][name] for name in ("data", "method")}
            | {cost: reached([run[cost] for run in ours]) for cost in costs}
            | {"suboptimality": f"{np.median([run['suboptimality'] for run in ours]):.1e}"}
            | {"test_loss": mean_and_spread(run["test_loss"] for run in ours)}
        )
    return lines


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    sources = {name: binary.find(name, config.data_dir) for name in config.data}
    present = {name: source for name, source in sources.items() if source is not None}
    missing = f"no such files in {config.data_dir}: {', '.join(name for name in sources if name not in present)}"
    if not present:
        raise FileNotFoundError(f"{missing}; name a folder with --data-dir or choose others with --data")
    if len(present) < len(sources):
        print(f"left out, as there are {missing}")
    with jax.enable_x64(True):
        searches = Searches()
        one = lambda advance, data, seed: one_penalty(config, searches, present[data], seed, advance)
        cells = run_cells(config, grid(data=present, seed=config.seed_range()), one, "splits")
    search = per_feature.make_search()
    feature = lambda advance, data, seed: per_feature.run_seed(search, seed, config.feature_budget)
    seeds = config.seed_range(config.feature_seeds)
    features = run_cells(config, grid(data=[per_feature.DATA], seed=seeds), feature, "seeds of one penalty per feature")
    return report(config, cells, features)


def report(config: Config, cells: list[dict[str, Any]], features: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, table.md and the plots, and returns the summary."""
    runs, history, feature_runs = rows(cells, "runs"), rows(cells, "history"), rows(features, "runs")
    print(f"\n{text_table(feature_table(feature_runs))}")
    title = f"One penalty: median cost to come this near to the minimum, {config.seeds} seeds (published: figures only)"
    summary = save(config, runs, table_of(runs), history, title, per_feature=feature_runs)
    draw(config.out, history, rows(features, "history"))
    return summary


def feature_table(runs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns the table of one penalty per feature: ours and the reference code."""
    costs = tuple(f"{name}_to_reference" for name in ("steps", "inner_gradients", "products", "gradients"))
    columns = ("first_loss", "best_loss", *costs, "gradients", "rises", "inner_limit_hits")
    reference = {"method": "fabianp/hoag, own run of it (one seed)", "first_loss": "0.693"}
    reference |= {"best_loss": str(per_feature.REFERENCE_LOSS), "inner_limit_hits": "2"}
    spent = per_feature.STEPS, per_feature.REFERENCE_GRADIENTS, per_feature.REFERENCE_PRODUCTS
    reference |= dict(zip(costs, map(str, (*spent, per_feature.REFERENCE_COST)), strict=True)) | {"rises": "yes"}
    ours = {c: mean_and_spread(run[c] for run in runs) for c in columns if c not in costs}
    ours |= {c: reached([run[c] for run in runs]) for c in costs}
    return [
        {"method": f"hg.HOAG, seeds: {len(runs)}"} | ours,
        {"method": "", **dict.fromkeys(columns, "-")} | reference,
    ]


FLOOR = 1e-9  # below it is rounding
UNITS = {"gradients": "gradient equivalents", "seconds": "seconds, without compilation"}


def draw(out: Path, history: list[Row], features: list[Row]) -> None:
    """Draws the suboptimality on every data set, and the loss with one penalty per feature."""
    colours: dict[str, str] = dict(zip(METHODS, COLOURS, strict=False))
    panels = grouped([line | {"above": max(line["suboptimality"], FLOOR)} for line in history], ("data",))
    for unit, label in UNITS.items() if panels else ():
        suboptimality_panels(out / f"suboptimality_{unit}.png", panels, "data", unit, label, colours)
    with figure(out / "per_feature.png") as ax:
        for path, colour in zip(grouped(features, ("seed",)), COLOURS, strict=False):
            work, losses = [line["gradients"] for line in path], [line["loss"] for line in path]
            ax.plot(work, losses, "o-", ms=3, color=colour, label=f"seed {path[0]['seed']}")
        ax.axhline(per_feature.REFERENCE_LOSS, color="gray", ls=":", label="reference code in the end")
        ax.axvline(per_feature.REFERENCE_COST / 10, color="gray", ls="--", label="a tenth of its cost")
        ax.set(xlabel="gradient equivalents", ylabel="validation loss")
        ax.grid(alpha=0.3)
        ax.legend()
