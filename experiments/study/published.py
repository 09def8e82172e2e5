"""The published table: Bakhteev and Strijov (2020), Annals of Operations Research 289, and Bakhteev's thesis.

By data, criterion and method: Q (higher is better), iterations to 99 % of the gain, error (RMSE or accuracy), error
with weight noise 0.25 and 0.5. WISDM there is the raw series and MNIST the whole set, so values of Q compare only on
the synthetic data; orderings compare everywhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

COLUMNS = ("Q", "its", "E", "E_0.25", "E_0.5")
TABLE = {
    ("synthetic", "cv"): {
        "random": (-171.6, 26.2, 1.367, 1.410, 1.555),
        "greedy": (-172.5, 30.0, 1.421, 1.439, 1.536),
        "drmad": (-174.1, 40.2, 1.403, 1.424, 1.512),
        "hoag": (-174.7, 29.4, 1.432, 1.463, 1.553),
    },
    ("synthetic", "elbo"): {
        "random": (-63.5, 32.4, 1.368, 1.426, 1.546),
        "greedy": (-25.5, 1.2, 1.161, 1.174, 1.193),
        "drmad": (-25.1, 10.6, 1.157, 1.163, 1.184),
        "hoag": (-25.8, 10.8, 1.141, 1.149, 1.177),
    },
    ("wisdm", "cv"): {
        "random": (-1086661.1, 22.0, 0.660, 0.670, 0.690),
        "greedy": (-1086707.1, 15.4, 0.707, 0.723, 0.769),
        "drmad": (-1086708.2, 29.2, 0.694, 0.708, 0.742),
        "hoag": (-1086733.5, 28.2, 0.701, 0.724, 0.753),
    },
    ("wisdm", "elbo"): {
        "random": (-35420.4, 14.4, 0.732, 0.755, 0.785),
        "greedy": (-3552.9, 1.0, 0.702, 0.730, 0.767),
        "drmad": (-26091.4, 50.0, 0.729, 0.753, 0.816),
        "hoag": (-16566.6, 49.0, 0.733, 0.755, 0.801),
    },
    ("mnist", "cv"): {
        "random": (-3236.4, 7.8, 0.981, 0.966, 0.866),
        "greedy": (-3416.7, 10.8, 0.979, 0.962, 0.860),
        "drmad": (-3469.0, 17.0, 0.982, 0.962, 0.831),
        "hoag": (-3748.6, 8.6, 0.980, 0.961, 0.853),
    },
    ("mnist", "elbo"): {
        "random": (-1304556.4, 14.2, 0.982, 0.943, 0.814),
        "greedy": (-11136.2, 1.0, 0.977, 0.952, 0.884),
        "drmad": (-1305432.9, 24.6, 0.982, 0.941, 0.813),
        "hoag": (-280061.6, 24.0, 0.981, 0.943, 0.819),
    },
}


def published(data: str, criterion: str, method: str) -> dict[str, float | str]:
    """The published figures of one row, `-` where there are none."""
    family = data.split("-")[0]
    found: tuple[float | str, ...] = TABLE.get((family, criterion), {}).get(method, ("-",) * len(COLUMNS))
    return {f"published_{name}": value for name, value in zip(COLUMNS, found, strict=True)}


def agreement(runs: Sequence[dict[str, Any]], claims: Sequence[dict[str, Any]]) -> list[str]:
    """One line per data set and criterion, of its runs and claims at equal iterations: which methods stand on the same
    side of random search as in the publication; which do not, with what may tell why."""
    lines = []
    for key in dict.fromkeys((run["data"], run["criterion"]) for run in runs):
        there = TABLE.get((key[0].split("-")[0], key[1]), {})
        at = lambda line, key=key: (line["data"], line["criterion"], line["budget"]) == (*key, "iterations")
        means = _means([run for run in runs if at(run)])
        mine = [c for c in claims if at(c) and c["method"] in there and "above_random" in c]
        gap = lambda claim, there=there: there[claim["method"]][0] - there["random"][0]
        agree = [claim for claim in mine if gap(claim) * claim["above_random"] > 0]
        parts = []
        for title, some in (("as published", agree), ("not as published", [c for c in mine if c not in agree])):
            words = [_beside(claim, gap(claim), means, some is not agree) for claim in some]
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


def _beside(claim: dict[str, Any], gap: float, means: dict[tuple[str, str], float], why: bool) -> str:
    name = claim["method"]
    words = f"{name} {claim['above_random']:+.3g} ± {claim['above_random_error']:.2g} ({gap:+.4g})"
    if why and (name, "test_loglik") in means:
        own, random = (means[each, "test_loglik"] for each in (name, "random"))
        words += f" [{means[name, 'hyper_updates']:.0f} hyper-updates, test rows {own - random:+.3g} nats each]"
    return words
