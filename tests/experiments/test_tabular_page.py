"""Tables of the page on tabular data."""

from experiments.tabular.page import against_one_per_layer, probabilities


def test_ratios_to_one_decay_per_layer_are_geometric_means_over_cases():
    """The ratio of a case is that of the mean errors over the splits."""
    errors = {("a", "good"): (2.0, 1.0), ("a", "bad"): (8.0, 1.0), ("b", "good"): (1.0, 2.0), ("b", "bad"): (4.0, 4.0)}
    runs = [
        {"set": name, "start": start, "method": method, "seed": seed, "test_error": value * (0.5 + seed)}
        for (name, start), pair in errors.items()
        for method, value in zip(("per weight", "online"), pair, strict=True)
        for seed in (0, 1)
    ]
    ratios, counts = against_one_per_layer(runs)
    assert [(line["error over that of `online`"], line["per weight"]) for line in ratios] == [
        *(("start good", "1.00"), ("start bad", "2.83")),
        *(("a", "4.00"), ("b", "0.71"), ("all", "1.68")),
    ]
    (line,) = counts
    assert (line["ahead"], line["level"], line["behind"]) == (1, 1, 2)


def test_a_run_that_diverged_has_a_place_on_the_page():
    """JSON has no infinity: all measures of such a run are `None`."""

    def of(method, start, value):
        measures = dict.fromkeys(("test_error", "test_nll", "calibration_error"), value)
        return {"set": "a", "start": start, "method": method, "seed": 0} | measures

    lost, level = of("per weight", "bad", None), of("per weight", "good", 1.0)
    ratios, (counts,) = against_one_per_layer([lost, of("online", "bad", 2.0), level, of("online", "good", 1.0)])
    found = {line["error over that of `online`"]: line["per weight"] for line in ratios}
    assert found == {"start bad": "inf", "start good": "1.00", "a": "inf", "all": "inf"} and counts["behind"] == 1
    both, _ = against_one_per_layer([lost, of("online", "bad", None)])
    assert {line["per weight"] for line in both} == {"1.00"}
    assert {line["per weight"] for line in probabilities([lost, level])} == {"inf"}


def test_probabilities_are_medians_over_starts_and_splits():
    run = lambda seed, value: {"set": "a", "method": "plain", "seed": seed, "test_nll": value, "calibration_error": 0.1}
    nll, calibration = probabilities([run(0, 1.0), run(1, 100.0), run(2, 2.0)])
    assert (nll["plain training"], calibration["plain training"]) == ("2", "0.1")
