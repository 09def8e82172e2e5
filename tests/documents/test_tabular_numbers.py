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


def pairs(runs, ours, theirs):
    """The test errors of two methods, run by run."""
    of = lambda method: {
        (run["set"], run["start"], run["seed"]): run["test_error"] for run in runs if run["method"] == method
    }
    one, other = of(ours), of(theirs)
    assert one.keys() == other.keys()
    return np.array([(one[place], other[place]) for place in one])


def ratio(runs, ours, theirs):
    """The geometric mean of the ratio of two methods' test errors, and its standard error; 0 counts as 0.001."""
    found = np.log(np.maximum(pairs(runs, ours, theirs), 1e-3))
    logs = found[:, 0] - found[:, 1]
    mean = math.exp(logs.mean())
    return mean, mean * logs.std(ddof=1) / math.sqrt(len(logs))


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
    agree("when.md", "and behind the best fixed setting in # cases", behind)
    agree(PAGE, "Within the spread of it or better `tune` is in # cases of #", ahead + level, ahead + level + behind)
    agree(PAGE, "Against plain training it is ahead in # cases, level in # and behind in #: on", *counts["plain"])
    assert lost(result, "plain") == ["wine-quality-red (rate / 30)", "diabetes (decay e^-4, rate 1e-4, b1 .5)"]
    good = [run for run in result["runs"] if run["start"] == "good"]
    from_good = next(line for line in verdicts(good) if line["rival"] == "plain")
    assert (from_good["ahead"], from_good["level"], from_good["behind"]) == (1, 5, 0)  # as when.md says
    agree(
        "when.md",
        "With # gradients it is ahead of plain training in # cases, level in # and behind in #; of TPE in #, # and #",
        result["config"]["budget"],
        *counts["plain"],
        *counts["tpe, 10 % trials"],
    )
    yacht = next(line for line in verdicts([run for run in good if run["set"] == "yacht"]) if line["rival"] == "plain")
    assert yacht["ahead"] == 1
    agree(PAGE, "is ahead of it in # cases, level in #, and behind in #, both", *counts["tpe, 10 % trials"])
    assert all(place.startswith("diabetes") for place in lost(result, "tpe, 10 % trials"))
    agree(PAGE, "ahead of free momentum in # cases, level in #, behind in #", *counts["tune, free momentum"])
    number = len(pairs(result["runs"], "tune", "tune, free momentum"))
    found = ratio(result["runs"], "tune", "tune, free momentum")
    agree(PAGE, "Over all # pairs of runs the test error is # ± # times", number, *found)
    agree(PAGE, "# gradient equivalents, three splits that were not used before", result["config"]["budget"])


def test_one_decay_per_weight():
    result = read("tabular_weights")
    assert result["config"]["budget"] == 20_000
    good, strong = ([run for run in result["runs"] if run["start"] == start] for start in ("good", "decay e^-2"))
    guarded, free = "per weight, guarded", "per weight"
    counts = lambda runs, rival: next(
        [line[word] for word in VERDICTS] for line in verdicts(runs, guarded) if line["rival"] == rival
    )
    agree(PAGE, "of `per weight, guarded` is # ± # times that of `online`", *ratio(good, guarded, "online"))
    agree(PAGE, "and # ± # times that of plain training; without", *ratio(good, guarded, "plain"))
    agree(PAGE, "it is # ± # and # ± # times.", *ratio(good, free, "online"), *ratio(good, free, "plain"))
    agree(PAGE, "method is ahead of `online` in #, level in # and behind in #", *counts(good, "online"))
    behind = counts(strong, "online")[2]
    agree(PAGE, "is behind `online` in # of # cases, # ± # times", behind, 6, *ratio(strong, guarded, "online"))
    agree(PAGE, "without the guards it is # ± # times. The decays", *ratio(strong, free, "online"))
    diabetes = next(line for line in result["table"] if line["set"] == "diabetes" and line["start"] == "good")
    found = [float(number) for name in (free, guarded, "online") for number in diabetes[name].split(" ± ")]
    agree(PAGE, "per weight ends at # ± #, guarded at # ± # and one per layer at # ± #", *found)
    ahead, level, lost = counts(result["runs"], free)
    agree(PAGE, "ahead in # of # cases, level in #, behind in #", ahead, 12, level, lost)
