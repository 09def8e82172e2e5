"""The comparison as a page shows it: the quickest of each kind beside ours, and then all."""

from collections.abc import Callable
from typing import Any

from ...common.report import Row, grouped, text_table

ON_TORCH = ("torch", "TorchOpt", "higher", "Betty")
COLUMNS = ("runs", "MB", "first call s", "cosine", "rel. error")
KINDS: dict[str, Callable[[Row], bool]] = {
    "through the whole run": lambda row: row["exact"],
    "implicit, CG(20)": lambda row: "CG(20)" in row["peer"] and "L-BFGS" not in row["peer"],
    "implicit, L-BFGS": lambda row: "L-BFGS" in row["peer"],
}


def library(row: Row) -> str:
    """Returns the library of a peer: ours, JAX, jaxopt and so on."""
    return str(row["peer"].split(":")[0])


def printed(row: Row) -> dict[str, str]:
    """Returns a row as it is shown."""
    if "error" in row:
        return {"": row["problem"], "peer": row["peer"], **dict.fromkeys(COLUMNS, "-")}
    values = {
        "runs": f"{row['time_over_plain']:.2f}",
        "MB": f"{row['bytes'] / 1e6:.2f}",
        "first call s": f"{row['first_call_s']:.2f}",
        "cosine": "-" if row["cosine"] is None else f"{row['cosine']:.4f}",  # of a hypergradient that is zero
        "rel. error": f"{row['relative_error']:.1e}",
    }
    return {"": row["problem"], "peer": row["peer"]} | values


def beside(rows: list[Row]) -> list[dict[str, str]]:
    """Returns for every problem and kind the quickest of ours, and what the quickest others take of its time."""
    lines = []
    for mine in grouped([row for row in rows if "error" not in row], ("problem",)):
        for kind, belongs in KINDS.items():
            found = sorted(filter(belongs, mine), key=lambda row: row["time_over_plain"])
            ours = next((row for row in found if library(row) == "ours"), None)
            if ours is not None:
                lines.append(_line(kind, ours, [row for row in found if library(row) != "ours"]))
    return lines


def _line(kind: str, ours: Row, others: list[Row]) -> dict[str, str]:
    torch = [row for row in others if library(row) in ON_TORCH]
    by_hand = [row for row in others if library(row) == "JAX"]
    on_jax = [row for row in others if row not in torch + by_hand]
    times = lambda row: f"{row['time_over_plain'] / ours['time_over_plain']:.2f}, {row['peer']}"
    first = lambda rows: times(rows[0]) if rows else "-"
    line: dict[str, Any] = {"": ours["problem"], "kind": kind, "ours": ours["peer"].removeprefix("ours: ")}
    line["runs"] = f"{ours['time_over_plain']:.2f}"
    return line | {"by hand": first(by_hand), "libraries on JAX": first(on_jax), "torch": first(torch)}


def page(result: Row) -> str:
    """Returns both tables, the first where anything is to be compared."""
    tables = beside(result["rows"]), [printed(row) for row in result["rows"]]
    return "\n\n".join(text_table(table) for table in tables if table)
