"""Sentences on tabular data at the full budget, compared with the published runs."""

import math

import numpy as np

from experiments.publish import read
from experiments.tabular.report import verdicts

from tests.documents.pages import agree

PAGE = "tabular.md"
VERDICTS = ("ahead", "level", "behind")


def by_rival(result):
    return {line["rival"]: [line[word] for word in VERDICTS] for line in result["counts"]}


def lost(result, rival):
    return next(line["lost"] for line in result["counts"] if line["rival"] == rival)


def pairs(result, ours, theirs):
    """The test errors of two methods, run by run."""
    of = lambda method: {
        (run["set"], run["start"], run["seed"]): run["test_error"] for run in result["runs"] if run["method"] == method
    }
    one, other = of(ours), of(theirs)
    assert one.keys() == other.keys()
    return np.array([(one[place], other[place]) for place in one])


def test_the_full_budget():
    result = read("tabular_full")
    counts = by_rival(result)
    over_best = {}
    for line in result["table"]:
        ours, best = (float(line[name].split()[0]) for name in ("tune", "best fixed"))
        over_best.setdefault(line["set"], []).append(ours / best)
    limits = {name: (min(ratios), max(ratios)) for name, ratios in over_best.items()}
    agree(PAGE, "its error is # to # times that of the best on energy", *limits["energy"])
    agree(
        PAGE,
        "# to # times on wine-quality-red, # to # times on kin8nm, # to # times on diabetes, # to # times on yacht and "
        "# to # times on the digits",
        *(limit for name in ("wine-quality-red", "kin8nm", "diabetes", "yacht", "digits") for limit in limits[name]),
    )
    ahead, level, behind = counts["best fixed"]
    agree(PAGE, "Within the spread of it or better `tune` is in # cases of #", ahead + level, ahead + level + behind)
    agree(PAGE, "Against plain training it is ahead in # cases, level in # and behind in #: on", *counts["plain"])
    assert lost(result, "plain") == ["wine-quality-red (rate / 30)", "diabetes (decay e^-4, rate 1e-4, b1 .5)"]
    good = [run for run in result["runs"] if run["start"] == "good"]
    from_good = next(line for line in verdicts(good) if line["rival"] == "plain")
    assert (from_good["ahead"], from_good["level"], from_good["behind"]) == (1, 5, 0)
    yacht = next(line for line in verdicts([run for run in good if run["set"] == "yacht"]) if line["rival"] == "plain")
    assert yacht["ahead"] == 1
    agree(PAGE, "is ahead of it in # cases, level in #, and behind in #, both", *counts["tpe, 10 % trials"])
    assert all(place.startswith("diabetes") for place in lost(result, "tpe, 10 % trials"))
    agree(PAGE, "ahead of free momentum in # cases, level in #, behind in #", *counts["tune, free momentum"])
    found = pairs(result, "tune", "tune, free momentum")
    logs = np.diff(np.log(np.maximum(found, 1e-3)))[:, 0]
    error = math.exp(-logs.mean()) * logs.std(ddof=1) / math.sqrt(len(logs))
    agree(PAGE, "Over all # pairs of runs the test error is # ± # times", len(logs), math.exp(-logs.mean()), error)
    agree(PAGE, "# gradient equivalents, three splits that were not used before", result["config"]["budget"])
