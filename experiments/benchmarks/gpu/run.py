"""Starts the processes of every part, ends them when their time is up, gathers their rows."""

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...common.report import write_json
from .config import SHARES, VARIANTS, Config, Part
from .report import compare_with_cpu, print_table

RESERVE = 5.0  # seconds at the end
EVERY = 2.0  # seconds between two checks of a process
GRACE = 1.5  # seconds in which a process may end by itself


def main(config: Config) -> dict[str, Any]:
    """Runs all parts, writes gpu.json after every row, prints a table."""
    started = time.time()
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "config.json", config)
    results: dict[str, Any] = {
        "config": config,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": {},
        "parts": {},
    }
    available, total = max(1.0, 60 * config.minutes - RESERVE), sum(SHARES[part] for part in config.parts)
    until = started
    for part in config.parts:
        until += available * SHARES[part] / total
        for found in follow(config, part, until):
            results["parts"][part] = found
            complete(config, results, time.time() - started)
            write_json(config.out / "gpu.json", results)
        print(f"{part}: {found['status']}, {len(found['rows'])} rows, {found['seconds']:.0f} s", flush=True)
    print_table(results)
    print(f"\nwritten to {config.out / 'gpu.json'}")
    return results


def complete(config: Config, results: dict[str, Any], seconds: float) -> None:
    """Adds the numbers that follow from the rows so far."""
    results["seconds"] = round(seconds, 1)
    for row in results["parts"].get("device", {"rows": []})["rows"]:
        if row["name"] == "environment" and "error" not in row:
            named = {"commit": config.commit} if config.commit else {}
            results["environment"] = {key: row[key] for key in row if key not in ("name", "took_s")} | named
    if "ensembles" in results["parts"] and config.cpu_figures is not None and config.cpu_figures.exists():
        cpu = json.loads(config.cpu_figures.read_text())
        results["compared_with_cpu"] = compare_with_cpu(results["parts"]["ensembles"]["rows"], cpu)


def follow(config: Config, part: Part, until: float) -> Iterator[dict[str, Any]]:
    """Yields the part as it grows: its rows, the tasks that did not fit or failed, how it ended."""
    started, path, statuses = time.time(), config.out / f"{part}.jsonl", []
    path.unlink(missing_ok=True)
    for variant in VARIANTS.get(part, ("all",)):
        if time.time() >= until:
            statuses.append("no time left")
            continue
        with process(config, part, variant, path, until) as child:
            try:
                while (left := until - time.time()) > 0 and child.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(min(EVERY, left))
                    yield gathered(path, started, "running")
                ended = child.poll()
            finally:
                child.kill()
        statuses.append("stopped" if ended is None else "finished" if ended == 0 else "failed")
    worst = next((status for status in ("failed", "stopped", "no time left") if status in statuses), "finished")
    yield gathered(path, started, worst)


def process(config: Config, part: Part, variant: str, path: Path, until: float) -> subprocess.Popen:
    """Starts a process; its output goes to a file next to its rows."""
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if part == "proton":  # its preparation has threads of its own
        settings["OPENBLAS_NUM_THREADS"] = "1"
    module = f"{__package__}.child"
    command = [sys.executable, "-m", module, part, variant, config.out / "config.json", path, str(until - GRACE)]
    with open(config.out / f"{part}-{variant}.log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | settings)


def gathered(path: Path, started: float, status: str) -> dict[str, Any]:
    """Returns the parts on disk, and the missing ones."""
    rows: list[dict[str, Any]] = []
    plan: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:  # half a line: its process was ended
            continue
        plan, rows = (plan + found["plan"], rows) if "plan" in found else (plan, [*rows, found])
    known = {row["name"] for row in rows}
    seconds = round(time.time() - started, 1)
    missing = [name for name in plan if name not in known]
    status = "stopped" if missing and status == "finished" else status
    return {"status": status, "seconds": seconds, "rows": rows, "missing": missing}
