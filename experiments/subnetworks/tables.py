"""What the report says of the searches."""

from typing import Any

import numpy as np

from ..common.report import mean_and_spread
from .parts import efficiency


def summarise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per part, task, base and strategy."""
    groups: dict[tuple, list] = {}
    for line in lines:
        groups.setdefault((line["part"], line["task"], line["base"], line["strategy"]), []).append(line)
    table = []
    for (part, task, base, strategy), members in groups.items():
        reference = groups.get((part, task, base, "outside" if part == "inside" else "base"), members)
        curves, plain = ([one["curve"] for one in group] for group in (members, reference))
        final, against = (float(np.median([c[-1] for c in group])) for group in (curves, plain))
        worth = None if part == "inside" else efficiency(plain, curves)
        table.append(
            {
                "part": part,
                "task": task,
                "base": base,
                "strategy": strategy,
                "seeds": len(members),
                "final": f"{final:.4g}",
                "ratio": f"{final / against:.2f}",
                "wins": sum(a[-1] < b[-1] for a, b in zip(curves, plain, strict=True)),
                "efficiency": "-" if worth is None else f"{worth:.2f}",
                "test": mean_and_spread(one.get("final_test", one.get("test")) for one in members),
            }
        )
    return table


def least_important(lines: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """For each part and strategy, in how many searches each measure finds the branch of noise the least important."""
    counts: dict[str, dict[str, int]] = {}
    for line in lines:
        if line["part"] in ("digits", "inside"):
            count = counts.setdefault(f"{line['part']}, {line['task']}, {line['strategy']}", {})
            for measure in ("ped_anova", "ridge", "hypergradient"):
                weights = line[measure]
                lowest = weights["noise"] < min(weight for block, weight in weights.items() if block != "noise")
                count[measure] = count.get(measure, 0) + lowest
    return counts


def curves_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every trial of every search as a line."""
    return [
        {name: line[name] for name in ("part", "task", "base", "strategy", "seed")} | {"trial": k, "best": value}
        for line in lines
        for k, value in enumerate(line["curve"])
    ]
