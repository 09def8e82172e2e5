"""The table next to the published one, and conclusions from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.cells import rows
from ..common.report import Row, grouped, plainly, save, spread_table, text_table, write_csv
from . import polynomial
from .methods import METHODS
from .plots import draw
from .published import agreement, published
from .settings import setting

MEASURED = ("Q", "its", "E", "E_0.25", "E_0.5", "test_loglik")
COSTS = ("iterations", "gradients", "hvps", "hyper_updates", "seconds")
KEYS = ("data", "criterion", "budget", "method")
OPTIMUM = "exact optimum"
RIVALS = ("random", "tpe", "plain", OPTIMUM)
GRADIENT = ("greedy", "drmad", "hoag", "reverse", "drmad_knots", "random_greedy")
COMPARISON = """Nats from random search at equal iterations, the published figure in brackets (of other data unless they
are synthetic, and of another number of updates). Two things explain differences. The published greedy method made η
hyper-updates per iteration and DrMAD and HOAG one, 50 or 25 in all: where a criterion rewards many small steps they
stop on the way. And cross-validation can be raised on the folds without a gain on test rows: where a method is above
random search here and not there, the change in log-likelihood per test row says so."""
Runs = Sequence[Row]


def report(config: Any, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, table.md, table.csv, table.tex, report.md and the plots."""
    runs, noise, history = (rows(cells, name) for name in ("runs", "noise", "history"))
    everything = [run for group in grouped(runs, KEYS[:3]) for run in (*group, *exact(group))]
    table = [
        line | median_error(everything, line) | published(line["data"], line["criterion"], line["method"])
        for line in spread_table(everything, KEYS, (*MEASURED, *COSTS))
    ]
    claims = [claim for group in grouped(everything, KEYS[:3]) for claim in compare(group)]
    title = f"{config.seeds} seeds, mean ± standard deviation; Q in nats, higher is better; its in published iterations"
    summary = save(config, runs, table, history, title, claims=claims, noise=noise)
    write_csv(config.out / "table.csv", table)
    (config.out / "table.tex").write_text(latex(table))
    plots = draw(config.out, history, runs, noise)
    compared = agreement(runs, claims)
    (config.out / "report.md").write_text(markdown(title, table, claims, compared, plots))
    return summary


def exact(runs: Runs) -> list[dict[str, Any]]:
    """Returns closed-form results for the evidence bound on the synthetic data, as runs.

    They are its optimum, and the best of as many random draws as iterations, each trained to the end.
    """
    if (runs[0]["data"], runs[0]["criterion"]) != ("synthetic", "elbo"):
        return []
    known, lines = setting("synthetic", None), []
    blank = dict.fromkeys((*MEASURED, *COSTS, "Q_start")) | {key: runs[0][key] for key in KEYS[:3]}
    for seed in dict.fromkeys(run["seed"] for run in runs):
        rows = known.sample(seed).train
        best = polynomial.best_mean_field(rows, known.box)[0]
        drawn = polynomial.best_of_draws(rows, known.prior, known.outer_steps)
        lines += [blank | {"method": OPTIMUM, "seed": seed, "Q": best}]
        lines += [blank | {"method": "random, each exact", "seed": seed, "Q": drawn}]
    return lines


def median_error(runs: Runs, line: dict[str, Any]) -> dict[str, Any]:
    """Returns the median of the test error over the seeds of one line of the table."""
    found = [run["E"] for run in runs if all(run[key] == line[key] for key in KEYS) and run["E"] is not None]
    return {"E_median": f"{np.median(found):.4g}" if found else "-"}


def compare(runs: Runs) -> list[dict[str, Any]]:
    """Compares every method with random search, TPE, plain training and the exact optimum, seed by seed.

    `share_of_greedy` is its gain as a share of greedy's. `beyond` says whether the mean difference is larger than twice
    its standard error over seeds.
    """
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["method"], {})[run["seed"]] = run
    claims = []
    for name, own in by_method.items():
        claim = {key: runs[0][key] for key in KEYS[:3]} | {"method": name}
        for rival in RIVALS:
            if rival in by_method and rival != name:
                claim |= difference(own, by_method[rival], rival)
        if "greedy" in by_method and name in METHODS:
            claim["share_of_greedy"] = share(own, by_method["greedy"])
        claims.append(claim)
    return claims


def difference(own: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], rival: str) -> dict[str, Any]:
    """Returns Q less the rival's, paired over seeds."""
    values = np.array([own[seed]["Q"] - other[seed]["Q"] for seed in own if usable(own[seed], other[seed])])
    if not values.size:
        return {}
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.inf
    return {
        f"above_{rival}": float(values.mean()),
        f"above_{rival}_error": float(error),
        f"beyond_{rival}": bool(values.mean() > 2 * error),
    }


def share(own: dict[int, dict[str, Any]], greedy: dict[int, dict[str, Any]]) -> float | None:
    """Returns the gain of a method from the common start over that of greedy, the median over seeds.

    Seeds where greedy gained nothing are left out.
    """
    both = [(own[seed], greedy[seed]) for seed in own if usable(own[seed], greedy[seed])]
    gains = [(run["Q"] - other["Q_start"], other["Q"] - other["Q_start"]) for run, other in both]
    shares = [gain / greedys for gain, greedys in gains if greedys > 0]
    return float(np.median(shares)) if shares else None


def usable(*runs: dict[str, Any]) -> bool:
    """Returns whether all runs found a finite value."""
    return all(run["Q"] is not None and np.isfinite(run["Q"]) for run in runs)


def latex(table: Runs) -> str:
    """Returns the table for a paper, with the published figures."""
    columns = (*KEYS, *MEASURED, *(name for name in table[0] if name.startswith("published")))
    escape = lambda text: str(text).replace("_", r"\_").replace("±", r"$\pm$").replace("%", r"\%")
    heading = dict(zip(columns, columns, strict=True))
    lines = [" & ".join(escape(line[name]) for name in columns) + r" \\" for line in (heading, *table)]
    body = "\n".join([lines[0], r"\hline", *lines[1:]])
    return f"\\begin{{tabular}}{{{'l' * 4}{'r' * (len(columns) - 4)}}}\n{body}\n\\end{{tabular}}\n"


def markdown(title: str, table: Runs, claims: Runs, compared: Sequence[str], plots: Sequence[str]) -> str:
    """Returns the report: the best methods, the agreement with the publication, the table, the plots."""
    parts = ["# Hypergradients against search", title, "## What the runs say", "\n".join(sentences(claims))]
    if compared:
        parts += ["## Comparison with the published table", COMPARISON, "\n".join(compared)]
    parts += ["## All figures", text_table(table), "## Plots", "\n\n".join(f"![{name}]({name})" for name in plots)]
    return "\n\n".join(parts) + "\n"


def sentences(claims: Runs) -> list[str]:
    """Returns one line per data set, criterion and budget: the gradient methods above the searches, and by how much."""
    lines = []
    for group in grouped(claims, KEYS[:3]):
        parts = [winners(group, rival) for rival in RIVALS[:-1] if any(f"above_{rival}" in c for c in group)]
        below = [f"{c['method']} {-c[f'above_{OPTIMUM}']:.2f}" for c in group if f"above_{OPTIMUM}" in c]
        parts += [f"nats below the exact optimum: {', '.join(below)}"] if below else []
        shares = [f"{c['method']} {100 * c['share_of_greedy']:.1f} %" for c in group if c.get("share_of_greedy")]
        parts.append(f"gain as a share of greedy's: {', '.join(shares) or '-'}")
        lines.append(f"- **{' · '.join(str(group[0][key]) for key in KEYS[:3])}**: " + "; ".join(parts) + ".")
    return lines


def winners(group: Runs, rival: str) -> str:
    """Returns the gradient methods above a search, beyond the spread."""
    better = [claim for claim in group if claim.get(f"beyond_{rival}") and claim["method"] in GRADIENT]
    words = [plainly(f"{c['method']} by {c[f'above_{rival}']:.3g} ± {c[f'above_{rival}_error']:.2g}") for c in better]
    return f"above {rival} beyond the spread: {', '.join(words) or 'none'}"
