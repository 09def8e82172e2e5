"""The published table: Bakhteev and Strijov (2020), Annals of Operations Research 289, and Bakhteev's thesis.

By data, criterion and method: Q (higher is better), iterations to 99 % of the gain, error (RMSE or accuracy), error
with weight noise 0.25 and 0.5. WISDM there is the raw series and MNIST the whole set, so values of Q compare only on
the synthetic data; orderings compare everywhere.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.report import grouped

COLUMNS = ("Q", "its", "E", "E_0.25", "E_0.5")
FILE = Path(__file__).parent / "data" / "published.csv"


def table() -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Returns the columns by (data, criterion) and method."""
    with open(FILE) as file:
        lines = grouped(csv.DictReader(file), ("data", "criterion"))
    row = lambda line: {name: float(line[name]) for name in COLUMNS}
    return {(mine[0]["data"], mine[0]["criterion"]): {line["method"]: row(line) for line in mine} for mine in lines}


TABLE = table()


def published(data: str, criterion: str, method: str) -> dict[str, float | str]:
    """Returns the published figures of one row, `-` where there are none."""
    found = TABLE.get((data.split("-")[0], criterion), {}).get(method, {})
    return {f"published_{name}": found.get(name, "-") for name in COLUMNS}


def agreement(runs: Sequence[dict[str, Any]], claims: Sequence[dict[str, Any]]) -> list[str]:
    """Compares runs and claims at equal iterations with the publication, one line per data set and criterion.

    A line names the methods on the same side of random search as in the publication, and those on the other side with
    numbers that may tell why.
    """
    lines = []
    for key in dict.fromkeys((run["data"], run["criterion"]) for run in runs):
        there = TABLE.get((key[0].split("-")[0], key[1]), {})
        at = lambda line, key=key: (line["data"], line["criterion"], line["budget"]) == (*key, "iterations")
        means = _means([run for run in runs if at(run)])
        mine = [c for c in claims if at(c) and c["method"] in there and "above_random" in c]
        gap = lambda claim, there=there: there[claim["method"]]["Q"] - there["random"]["Q"]
        agree = [claim for claim in mine if gap(claim) * claim["above_random"] > 0]
        parts = []
        for title, some in (("as published", agree), ("not as published", [c for c in mine if c not in agree])):
            words = [_compared(claim, gap(claim), means, some is not agree) for claim in some]
            parts += [f"{title}: {', '.join(words)}"] if words else []
        lines += [f"- **{' · '.join(key)}** {'; '.join(parts)}."] if parts else []
    return lines


def _means(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for name in ("hyper_updates", "test_loglik"):
            if run[name] is not None:
                found.setdefault((run["method"], name), []).append(run[name])
    return {key: float(np.mean(values)) for key, values in found.items()}


def _compared(claim: dict[str, Any], gap: float, means: dict[tuple[str, str], float], why: bool) -> str:
    name = claim["method"]
    words = f"{name} {claim['above_random']:+.3g} ± {claim['above_random_error']:.2g} ({gap:+.4g})"
    if why and (name, "test_loglik") in means:
        own, random = (means[each, "test_loglik"] for each in (name, "random"))
        words += f" [{means[name, 'hyper_updates']:.0f} hyper-updates, test rows {own - random:+.3g} nats each]"
    return words
