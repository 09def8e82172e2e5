"""Sentences about the GPU against the results that were measured there."""

import json

from tests.documents.pages import DOCS, agree, lines_of, unit

GPU = json.loads((DOCS / "gpu.json").read_text())


def by_name(parts):
    return {part: {row["name"]: row for row in found["rows"]} for part, found in parts.items()}


PART, EARLIER, LATER = (by_name(run["parts"]) for run in (GPU, GPU["earlier"], GPU["later"]))


def line_of(label):
    return next(line for line in lines_of("gpu.md") if line[0] == label)


def close(texts, *values):
    for text, value in zip(texts, values, strict=True):
        assert abs(float(text.replace(",", "")) - value) <= 0.51 * unit(text), (texts, text, value)


def test_gpu_replicas():
    for size in (1, 10, 100, 300, 1000, 4000):
        row = PART["ensembles"][f"{size} together"]
        (shown,) = (
            line
            for line in lines_of("gpu.md")
            if line[0] == f"{size:,}" and "million" in line[1] + line[1].replace("thousand", "million")
        )
        scale = {"thousand": 1e3, "million": 1e6}[shown[1].split()[1]]
        for text, value in (
            (shown[1].split()[0], row["replica_steps_per_second"] / scale),
            (shown[2], GPU["replica_rate_over_two_cpu_cores"][str(size)]),
            (shown[3].split()[0], row["millijoules_per_replica_step"]),
        ):
            assert abs(float(text) - value) <= 0.51 * unit(text), (size, text, value)


def test_gpu_estimators():
    names = {
        "`Reverse(remat=False)`": "Reverse(remat=False)",
        "`Reverse`": "Reverse",
        '`Reverse(checkpoints="sqrt")`': "Reverse sqrt(T)",
        "`Reverse(horizon=20)`": "Reverse(horizon=20)",
        "`Reversible`": "Reversible",
        "`DrMAD(knots=1)`": "DrMAD(knots=1)",
        "`Greedy`, every step": "Greedy every step",
        "`Implicit`, CG(20)": "Implicit CG(20)",
        "`Implicit`, Neumann(20)": "Implicit Neumann(20)",
    }
    for label, name in names.items():
        shown = line_of(label)
        run = next(
            run for run in (GPU, GPU["earlier"], GPU["later"]) if shown[5] == f"`{run['environment']['commit']}`"
        )
        row = by_name(run["parts"])["cost"][name]
        close(shown[1:5], row["time_over_plain"], row["time_over_bare"], row["temp_bytes"] / 1e6, row["cosine"])


def compare_lines(names, rows, keys):
    """Compares the line of each label on the page with the row of its name."""
    for label, name in names.items():
        close(line_of(label)[1:], *(rows[name][key] for key in keys))


def test_gpu_step():
    names = {
        "training alone": "training",
        "by hand: training, its pullback, Adam on the hyperparameters": "by hand",
        "the library": "library",
        "without the best step so far": "no best",
        "without the way back from results that are not finite": "no way back",
        "without both": "neither",
        "with a way back that does not look at the optimiser's update": "way back, one check",
    }
    rows = LATER["greedy_step"]
    compare_lines(names, rows, ("update_us", "time_over_by_hand", "launches"))
    took = {name: row["update_us"] for name, row in rows.items()}
    library, neither, no_best, no_way = (took[name] for name in ("library", "neither", "no best", "no way back"))
    best, way = (no_way - neither, library - no_best), (no_best - neither, library - no_way)
    agree("gpu.md", "the best step costs # to # µs, the way back # to #.", *best, *way)
    largest = max(rows["library"]["largest"].values())
    agree("gpu.md", "of the # µs # are kernels, and the largest, # µs", library, rows["library"]["kernels_us"], largest)
    agree("gpu.md", "# µs go into one question", library - took["way back, one check"])
    run = took["run, 100 steps a call"]
    agree("gpu.md", "takes # µs; the # on top of the loop", run, run - library)


def test_gpu_training_of_the_weights():
    names = {
        "constant rate": "constant rate",
        "constant rate, weights averaged by 0.99": "average 0.99",
        "constant rate, weights averaged by 0.999": "average 0.999",
        "rate decayed to zero along a cosine": "cosine decay",
        "rate decayed to a hundredth in the second half": "linear decay over the last half",
    }
    rows = LATER["inner_training"]
    compare_lines(names, rows, ("Q", "E", "E_0.25", "E_0.5"))
    assert sum(row["Q"] > -11136.2 for row in rows.values()) == 4


def test_gpu_sentences():
    product, weights, proton = PART["device"], LATER["weights"], EARLIER["proton"]
    default, highest = product["product, default"], product["product, highest"]
    slower = highest["seconds"] / default["seconds"]
    agree(
        "gpu.md",
        "off by # then, and by # at `highest`, which takes # times",
        default["relative_error"],
        highest["relative_error"],
        slower,
    )
    greedy = weights["Greedy, online"]
    agree(
        "gpu.md",
        "takes # ms, # times a plain update, with # copies",
        greedy["update_us"] / 1e3,
        greedy["time_over_plain"],
        greedy["peak_copies"],
    )
    losses = [proton[f"trial {number}"]["L1"] for number in range(1, 31)]
    assert losses.index(min(losses)) == 21
    agree("gpu.md", "lower the criterion from # to # at the 22nd", losses[0], min(losses))
