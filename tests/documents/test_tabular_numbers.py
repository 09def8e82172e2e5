"""Sentences on tabular data, compared with the published runs."""

import math

import numpy as np

from experiments.publish import read
from experiments.tabular.page import against_one_per_layer, probabilities
from experiments.tabular.report import verdicts

from tests.documents.pages import agree

PAGE = "tabular.md"
VERDICTS = ("ahead", "level", "behind")


def by_rival(result):
    return {line["rival"]: [line[word] for word in VERDICTS] for line in result["counts"]}


def lost(result, rival):
    return next(line["lost"] for line in result["counts"] if line["rival"] == rival)


def found_by(result, name, start, *methods):
    """Means and deviations of the test errors of methods, as the table has them."""
    line = next(line for line in result["table"] if line["set"] == name and line["start"] == start)
    return [float(number) for method in methods for number in line[method].split(" ± ")]


def rates(result, name, start, method):
    """The least and the largest rate of the best models of a method."""
    at = (name, start, method)
    found = [run["rate"] for run in result["runs"] if (run["set"], run["start"], run["method"]) == at]
    return min(found), max(found)


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


def over_best(result):
    """The least and the largest ratio of the error of `tune` to that of the best fixed setting, by set."""
    ratios = {}
    for line in result["table"]:
        ours, best = (float(line[name].split()[0]) for name in ("tune", "best fixed"))
        ratios.setdefault(line["set"], []).append(ours / best)
    return {name: (min(of_set), max(of_set)) for name, of_set in ratios.items()}


def from_the_good_start(result):
    """The verdict on `tune` against plain training from the good start, by set."""
    good = [run for run in result["runs"] if run["start"] == "good"]
    found = {}
    for name in dict.fromkeys(run["set"] for run in good):
        (line,) = [line for line in verdicts([run for run in good if run["set"] == name]) if line["rival"] == "plain"]
        found[name] = next(word for word in VERDICTS if line[word])
    return found


def test_the_quarter_budget():
    result = read("tabular")
    counts, limits = by_rival(result), over_best(result)
    value = {
        (line["set"], line["start"]): {name: float(line[name].split()[0]) for name in list(line)[2:]}
        for line in result["table"]
    }
    ruined = ("rate / 30", "decay e^-2", "decay e^-4, rate 1e-4, b1 .5")
    gains = [
        value[name, start]["plain"] / value[name, start]["tune"]
        for name in ("energy", "yacht", "kin8nm")
        for start in ruined
    ]
    agree(PAGE, "it is # to # times better on energy, yacht and kin8nm", min(gains), max(gains))
    for name in ("energy", "yacht", "kin8nm", "diabetes", "wine-quality-red"):
        errors = [cells["tune"] for (of, _), cells in value.items() if of == name]
        agree(PAGE, f"# to # on {name}", min(errors), max(errors))
    agree(PAGE, "Behind the best fixed setting in # cases of #", counts["best fixed"][2], len(value))
    agree(
        PAGE,
        "On diabetes the error is at most # times that of the best, on wine-quality-red # times, on energy # times and "
        "on kin8nm # times, both from decay e⁻², on the digits # to # times and on yacht # to # times",
        *(limits[name][1] for name in ("diabetes", "wine-quality-red", "energy", "kin8nm")),
        *(limit for name in ("digits", "yacht") for limit in limits[name]),
    )
    ahead = dict.fromkeys(("energy", "yacht", "wine-quality-red", "digits"), "ahead")
    assert from_the_good_start(result) == ahead | {"kin8nm": "level", "diabetes": "level"}  # as when.md says
    assert lost(result, "plain") == ["wine-quality-red (no decay, b1 .99)", "diabetes (rate x 30)"]
    behind_tpe = ("rate / 30", "rate x 30", "decay e^-2", "no decay, b1 .99")
    on_diabetes = [f"diabetes ({start})" for start in behind_tpe]
    assert lost(result, "tpe, 10 % trials") == [*on_diabetes, "digits (decay e^-2)"]
    agree("when.md", "ahead of plain training in # cases, level in # and behind in #", *counts["plain"])
    agree("when.md", "of TPE ahead in #, level in # and behind in #", *counts["tpe, 10 % trials"])
    agree("when.md", "in hindsight it is ahead in #, level in # and behind in #", *counts["best fixed"])


def test_the_bound_on_the_momentum_at_a_quarter_budget():
    result, free = read("tabular"), "tune, free momentum"
    ahead, level, behind = by_rival(result)[free]
    agree(PAGE, "Without it `tune` is worse in # cases, level in # and better in #", ahead, level, behind)
    agree(
        PAGE,
        "over all # pairs of runs the error is # ± # times that without",
        len(pairs(result["runs"], "tune", free)),
        *ratio(result["runs"], "tune", free),
    )
    others = [run for run in result["runs"] if run["method"] in ("plain", "tpe, 10 % trials")]
    as_ours = [run | {"method": "tune"} for run in result["runs"] if run["method"] == free]
    over_plain, over_tpe = ([line[word] for word in VERDICTS] for line in verdicts(as_ours + others))
    agree(PAGE, "then ahead of plain training in # cases, level in # and behind in #", *over_plain)
    agree(PAGE, "behind in #; of TPE in #, # and #", over_plain[2], *over_tpe)
    without, ours = found_by(result, "yacht", "no decay, b1 .99", free, "tune")[::2]
    agree(PAGE, "on yacht without decay and b1 0.99 # times worse", without / ours)
    ends = [run["b1"] for run in result["runs"] if run["method"] == free and run["start"] == "no decay, b1 .99"]
    agree(PAGE, "# of the # runs that start there end at 0.99 or above", sum(b1 >= 0.99 for b1 in ends), len(ends))


def test_the_full_budget():
    result = read("tabular_full")
    counts = by_rival(result)
    limits = over_best(result)
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
    assert lost(result, "plain") == ["wine-quality-red (no decay, b1 .99)", "diabetes (decay e^-4, rate 1e-4, b1 .5)"]
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
    assert from_the_good_start(result)["wine-quality-red"] == "ahead"
    agree(PAGE, "is ahead of it in # cases, level in #, and behind in #, one", *counts["tpe, 10 % trials"])
    places = [place.split()[0] for place in lost(result, "tpe, 10 % trials")]
    assert places == ["wine-quality-red", "diabetes", "digits"]
    agree(PAGE, "ahead of free momentum in # cases, level in #, behind in #", *counts["tune, free momentum"])
    number = len(pairs(result["runs"], "tune", "tune, free momentum"))
    found = ratio(result["runs"], "tune", "tune, free momentum")
    agree(PAGE, "Over all # pairs of runs the test error is # ± # times", number, *found)
    agree(PAGE, "# gradient equivalents, three splits that were not used before", result["config"]["budget"])


def test_probabilities_at_the_full_budget():
    found = {}
    for line in probabilities(read("tabular_full")["runs"]):
        methods = ("plain training", "TPE, trials of 10 %", "tune")
        found[line["median over starts and splits"], line["set"]] = [float(line[method]) for method in methods]
    sets = [name for measure, name in found if measure == "NLL"]
    best = {name: min(range(3), key=found["NLL", name].__getitem__) for name in sets}
    assert [name for name in sets if best[name] == 2] == ["energy", "yacht", "kin8nm"]
    assert len(set(found["NLL", "wine-quality-red"][1:])) == 1
    assert best["diabetes"] == best["digits"] == 1
    worst = {name: max(range(3), key=found["calibration error", name].__getitem__) for name in sets}
    assert all((worst[name] == 2) == (name != "digits") for name in sets)
    assert min(found["calibration error", "digits"]) == found["calibration error", "digits"][2]
    plain, tpe, tuned = found["calibration error", "energy"]
    agree(PAGE, "on energy # against # for plain training and # for TPE", tuned, plain, tpe)


def test_rounding():
    """The runs of `tune` that two results have, of two machines and two revisions."""
    here, there = read("tabular_full"), read("tabular_rates")
    runs = [run | {"method": "there"} for run in there["runs"] if run["method"] == "tune"]
    places = {(run["set"], run["start"]) for run in runs}
    runs += [run for run in here["runs"] if run["method"] == "tune" and (run["set"], run["start"]) in places]
    agree(PAGE, "over the # runs of `tune`", len(runs) / 2)
    agree(PAGE, "there is # ± # times the error here", *ratio(runs, "there", "tune"))
    of = lambda result: found_by(result, "digits", "rate x 30", "tune")
    agree(PAGE, "from a rate 30 times too large, # ± # in place of # ± #", *of(there), *of(here))


def test_remedies_for_the_rate():
    result = read("tabular_rates")
    small, large = "rate / 30", "rate x 30"
    for name in ("energy", "kin8nm"):
        for start in (small, large):
            line = next(line for line in result["table"] if (line["set"], line["start"]) == (name, start))
            order = sorted(list(line)[2:], key=lambda method: float(line[method].split()[0]))
            expected = ["tune", "online", "online, long horizon", "online, averaged"]
            assert set(order[:2]) == {"tune", "online, averaged"} or ((name, start), order[:4]) == (
                ("kin8nm", large), expected
            )  # fmt: skip
    regressions = [run for run in result["runs"] if run["set"] != "digits" and run["start"] == small]
    agree(PAGE, "is # ± # times that of `online`. On kin8nm", *ratio(regressions, "online, averaged", "online"))
    of = lambda method: rates(result, "kin8nm", small, method)
    agree(PAGE, "have rates of # to #, hardly more", *of("online"))
    agree(PAGE, "with averages # to #. - A long", *of("online, averaged"))
    agree(PAGE, "on kin8nm it comes to # to #. Persistent", *of("online, long horizon"))
    agree(PAGE, "evolution strategies come to # to #, but", *of("online, pes"))
    methods = ("online", "tune", "online, averaged")
    one, tuned, averaged = (found_by(result, "digits", large, method) for method in methods)
    agree(PAGE, "is best, # ± #; `tune` ends at # ± # and averages at # ± #", *one, *tuned, *averaged)
    of = lambda method: rates(result, "digits", large, method)
    agree(
        PAGE,
        "have rates of # to # without averages, # to # with them, # to # with `tune`",
        *(limit for method in ("online", "online, averaged", "tune") for limit in of(method)),
    )
    line = next(line for line in result["table"] if (line["set"], line["start"]) == ("digits", small))
    errors = [float(line[method].split()[0]) for method in list(line)[2:]]
    agree(PAGE, "all six methods end at # to #.", min(errors), max(errors))
    counts = by_rival(result)
    agree(
        PAGE, "`tune` is ahead in # cases of #, level in # and behind in #;", *with_all(counts["online, long horizon"])
    )
    assert counts["online, pes"] == [5, 1, 0]
    agree(PAGE, "`tune` is ahead of `online` in #, level in # and behind in #;", *counts["online"])
    agree(PAGE, "of `online, averaged` in #, # and #.", *counts["online, averaged"])


def test_criteria_on_the_training_rows():
    result = read("tabular_criteria")
    counts, small, large = by_rival(result), "rate / 30", "rate x 30"
    folds, bound, training = (f"online, {name}" for name in ("four folds", "evidence bound", "training loss"))
    agree(PAGE, "`online` is ahead of four folds in #, level in # and behind in #, of", *counts[folds])
    agree(PAGE, "of the training loss ahead in #, level in # and behind in #, of", *counts[training])
    agree(PAGE, "of the evidence bound ahead in #, level in # and behind in #.", *counts[bound])
    assert lost(result, folds) == lost(result, training) == ["kin8nm (rate x 30)"]
    of = lambda *methods: found_by(result, "kin8nm", large, *methods)
    agree(PAGE, "# ± # where four folds have # ± # and the training loss # ± #", *of("online", folds, training))
    agree(PAGE, "rates of # to # on energy, those", *rates(result, "energy", small, training))
    agree(PAGE, "those of `online` # to #; on", *rates(result, "energy", small, "online"))
    of_both = (*rates(result, "kin8nm", small, training), *rates(result, "kin8nm", small, "online"))
    agree(PAGE, "on kin8nm # to # and # to #, where they began", *of_both)
    found = found_by(result, "energy", small, folds, "online")
    agree(PAGE, "that is too few, # ± # against # ± #.", *found)
    errors = {}
    for line in result["table"]:
        errors.setdefault(line["set"], []).append(float(line[bound].split()[0]))
    limits = {name: (min(of_set), max(of_set)) for name, of_set in errors.items()}
    agree(PAGE, "fails on energy, with errors of # to #,", *limits["energy"])
    agree(PAGE, "On kin8nm it ends at # to #, on the digits at # to #.", *limits["kin8nm"], *limits["digits"])


def with_all(counts):
    """Counts, the sum of all after the first."""
    return [counts[0], sum(counts), *counts[1:]]


def test_one_decay_per_weight():
    result = read("tabular_layers")
    assert result["config"]["budget"] == read("tabular_weights")["config"]["budget"] == 20_000
    both, guarded, weights = "layer and weight", "layer and weight, guarded", "per weight, guarded"
    against = lambda ours: next(line for line in verdicts(result["runs"], ours) if line["rival"] == "online")
    counts = {method: [against(method)[word] for word in VERDICTS] for method in (both, guarded)}
    agree(PAGE, "`layer and weight` is ahead in # cases of #, level in # and behind in #,", *with_all(counts[both]))
    agree(PAGE, "with guards in #, # and #.", *counts[guarded])
    lost_on = lambda method, name: sum(place.startswith(name) for place in against(method)["lost"])
    assert [lost_on(method, "kin8nm") for method in (both, guarded)] == [5, 5]
    assert [lost_on(method, "wine-quality-red") for method in (both, guarded)] == [4, 5]
    ratios = {line["error over that of `online`"]: line for line in against_one_per_layer(result["runs"])[0]}
    at = lambda words, *methods: [float(ratios[words][method]) for method in methods]
    agree(PAGE, "# times the error of `online`, where one decay", *at("start decay e^-2", both))
    agree(PAGE, "with guards has # times. With guards it has # times.", *at("start decay e^-2", weights, guarded))
    agree(PAGE, "it has # times the error, guarded # times. That", *at("start good", both, guarded))
    found = found_by(result, "energy", "good", both, guarded, "online")
    agree(PAGE, "# ± # and # ± #, where `online` has # ± #", *found)
    itself = next(line for line in verdicts(result["runs"], guarded) if line["rival"] == both)
    agree(PAGE, "of itself without in # cases, level in # and behind in #", *(itself[word] for word in VERDICTS))


def test_one_decay_per_weight_without_guards():
    result = read("tabular_weights")
    ratios = {line["error over that of `online`"]: line for line in against_one_per_layer(result["runs"])[0]}
    agree(PAGE, "gains on yacht, # times the error of one per layer", float(ratios["yacht"]["per weight"]))
    against = next(line for line in verdicts(result["runs"], "per weight") if line["rival"] == "online")
    names = ("wine-quality-red", "kin8nm", "diabetes")
    assert against["lost"] == [f"{name} ({start})" for name in names for start in ("good", "decay e^-2")]
    found = found_by(result, "diabetes", "good", "per weight", "per weight, guarded", "online")
    agree(PAGE, "it ends at # ± #, guarded at # ± # and one per layer at # ± #", *found)
