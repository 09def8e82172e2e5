"""The final table, and the comparison with a CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...common.report import text_table

Row = Mapping[str, Any]


def fastest(rows: Sequence[Row]) -> dict[int, float]:
    """Returns the replica-steps per second by size of the ensemble, of the fastest program."""
    found: dict[int, float] = {}
    for row in rows:
        if "replica_steps_per_second" in row:
            rate = row["replica_steps_per_second"]
            found[row["replicas"]] = max(rate, found.get(row["replicas"], 0.0))
    return found


def compare_with_cpu(rows: Sequence[Row], cpu: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the ratios to the CPU's replica-steps per second, at the same size and at the CPU's best."""
    here, there = fastest(rows), fastest(cpu["parts"].get("ensembles", {"rows": []})["rows"])
    if not there:
        return {}
    best = max(there.values())
    return {
        "cpu": {name: cpu["environment"].get(name) for name in ("device", "cores", "jax", "commit")},
        "cpu_best_replica_steps_per_second": best,
        "times_cpu_at_this_size": {size: rate / there[size] for size, rate in here.items() if size in there},
        "times_cpu_at_its_best": {size: rate / best for size, rate in here.items()},
    }


def number(row: Row, name: str, unit: str, factor: float = 1.0) -> str:
    """Shows a number with its unit, empty where it was not measured."""
    value = row.get(name)
    return "" if value is None else f"{value * factor:.4g} {unit}"


COLUMNS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "device": (
        ("gigabytes_per_second", "GB/s", 1.0),
        ("teraflops_per_second", "TFLOP/s", 1.0),
        ("relative_error", "relative error", 1.0),
    ),
    "ensembles": (
        ("replica_steps_per_second", "replica-steps/s", 1.0),
        ("millijoules_per_replica_step", "mJ each", 1.0),
        ("watts", "W", 1.0),
    ),
    "cost": (
        ("seconds", "s", 1.0),
        ("time_over_plain", "x plain", 1.0),
        ("time_over_bare", "x bare", 1.0),
        ("time_over_our_reverse", "x our Reverse", 1.0),
        ("temp_bytes", "MB", 1e-6),
        ("cosine", "cosine", 1.0),
    ),
    "study": (("Q", "nats", 1.0), ("E", "test", 1.0), ("seconds", "s", 1.0)),
    "weights": (
        ("update_us", "µs an update", 1.0),
        ("time_over_plain", "x plain", 1.0),
        ("planned_copies", "copies planned", 1.0),
        ("peak_copies", "copies at the peak", 1.0),
    ),
    "proton": (("L1", "L1", 1.0), ("replica_steps_per_second", "replica-steps/s", 1.0), ("seconds", "s", 1.0)),
}


def print_table(results: Mapping[str, Any]) -> None:
    """Prints one line per row, with its main figures, and what is missing."""
    lines, missing = [], []
    for part, found in results["parts"].items():
        for row in found["rows"]:
            figures = [text for column in COLUMNS[part] if (text := number(row, *column))]
            lines.append({"part": part, "row": row["name"], "": ", ".join(figures) or row.get("error", "")[:100]})
        missing += [f"{part}: {name}" for name in found["missing"]]
    environment = results["environment"]
    print(f"\n{environment.get('device')}, jax {environment.get('jax')}, {results['seconds']:.0f} s\n")
    print(text_table(lines or [{"part": "", "row": "nothing", "": ""}]))
    compared = results.get("compared_with_cpu")
    if compared:
        times = ", ".join(f"{size}: {value:.3g}" for size, value in compared["times_cpu_at_its_best"].items())
        print(f"\nreplica-steps per second over the best of {compared['cpu']['cores']} CPU cores, {times}")
    if missing:
        print(f"\nnot fitted in: {'; '.join(missing)}")
