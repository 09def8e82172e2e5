"""Sentences about the GPU against the results that were measured there."""

import json

from tests.documents.pages import DOCS, agree, lines_of, unit

GPU = json.loads((DOCS / "gpu.json").read_text())


def by_name(parts):
    return {part: {row["name"]: row for row in found["rows"]} for part, found in parts.items()}


PART, EARLIER = by_name(GPU["parts"]), by_name(GPU["earlier"]["parts"])


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
        "`Reversible` †": "Reversible",
        "`DrMAD(knots=1)`": "DrMAD(knots=1)",
        "`Greedy`, every step": "Greedy every step",
        "`Implicit`, CG(20)": "Implicit CG(20)",
        "`Implicit`, Neumann(20) †": "Implicit Neumann(20)",
    }
    for label, name in names.items():
        row, shown = (
            (PART["cost"] | EARLIER["cost"])[name],
            next(line for line in lines_of("gpu.md") if line[0] == label),
        )
        values = row["time_over_plain"], row["time_over_bare"], row["temp_bytes"] / 1e6, row["cosine"]
        for text, value in zip(shown[1:], values, strict=True):
            assert abs(float(text.replace(",", "")) - value) <= 0.51 * unit(text), (label, text, value)


def test_gpu_sentences():
    product, weights, proton = PART["device"], PART["weights"], EARLIER["proton"]
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
