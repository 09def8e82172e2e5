"""Tables of the searches."""

from typing import Any

import numpy as np

from ..common.report import mean_and_spread


def summarise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one line per part, task, base and strategy."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
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
    """Counts the searches of each part and strategy in which a measure finds the branch of noise least important."""
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
    """Returns every trial of every search as a line."""
    return [
        {name: line[name] for name in ("part", "task", "base", "strategy", "seed")} | {"trial": k, "best": value}
        for line in lines
        for k, value in enumerate(line["curve"])
    ]


def efficiency(base: list[list[float]], method: list[list[float]]) -> float | None:
    """Returns how many times fewer trials than the base searcher a method needs for the base's own final median.

    The lower median over seeds of the trials each needs, the base's divided by the method's; `None` where half of the
    method's searches do not get there.
    """
    target = np.median([one[-1] for one in base])

    def needed(curves: list[list[float]]) -> float:
        first = [np.flatnonzero(np.asarray(one) <= target) for one in curves]
        return float(np.quantile([np.inf if len(where) == 0 else where[0] + 1 for where in first], 0.5, method="lower"))

    ours = needed(method)
    return needed(base) / ours if np.isfinite(ours) else None
