"""The benchmark for a GPU, at tiny sizes on a CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.gpu.config import PARTS, Config
from experiments.benchmarks.gpu.report import compare_with_cpu
from experiments.benchmarks.gpu.run import gathered

ROOT = Path(__file__).parents[2]
MEASURED = {
    "device": {"copy": "gigabytes_per_second", "product, highest": "relative_error"},
    "ensembles": {"4 together": "replica_steps_per_second", "1 not stacked": "replica_steps_per_second"},
    "cost": {"plain": "seconds", "Reverse": "time_over_bare", "DrMAD(knots=1)": "memory_over_bare"},
    "study": {"greedy, seed 0": "Q"},
    "weights": {"Greedy, online": "time_over_plain", "DrMAD, T = 3": "planned_copies", "Reverse, T = 3": "update_us"},
    "proton": {"trial 1": "L1"},
}


def command(*options):
    """The command line in a process that sees one CPU."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    arguments = [sys.executable, "-m", "experiments.benchmarks.gpu", *map(str, options)]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment)


def finite(value):
    """No number in a JSON value is infinite or NaN."""
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.sweep
def test_every_part_measures_something(tmp_path):
    done = command("--quick", "--out", tmp_path, "--commit", "abc123")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert finite(results) and tuple(results["parts"]) == PARTS
    assert results["environment"]["platform"] == "cpu" and results["environment"]["commit"] == "abc123"
    assert {"driver", "jax", "jaxlib", "matmul_precision"} <= set(results["environment"]) and results["date"]
    for part, found in results["parts"].items():
        logs = "".join(path.read_text() for path in tmp_path.glob(f"{part}-*.log"))
        assert (found["status"], found["missing"]) == ("finished", []), logs
        rows = {row["name"]: row for row in found["rows"]}
        assert not [row for row in rows.values() if "error" in row]
        for name, figure in MEASURED[part].items():
            assert isinstance(rows[name][figure], float), (part, name)
        assert part in done.stdout


@pytest.mark.slow
def test_a_part_without_time_is_reported(tmp_path):
    done = command("--quick", "--out", tmp_path, "--minutes", "0.001", "--parts", "device", "ensembles")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {found["status"] for found in results["parts"].values()} <= {"stopped", "no time left"}
    assert not any(found["rows"] for found in results["parts"].values())


def test_rows_of_a_process_that_was_ended(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"plan": ["a", "b", "c"]}\n{"name": "a", "seconds": 1.0}\n{"name": "b", "sec')
    found = gathered(path, 0.0, "stopped")
    assert found["rows"] == [{"name": "a", "seconds": 1.0}] and found["missing"] == ["b", "c"]


def test_comparison_with_a_cpu_takes_the_fastest_program_of_every_size():
    rate = lambda num, value: {"name": "", "replicas": num, "replica_steps_per_second": value}
    cpu = {
        "environment": {"cores": 2},
        "parts": {"ensembles": {"rows": [rate(1, 5.0), rate(1, 10.0), rate(10, 20.0)]}},
    }
    found = compare_with_cpu([rate(1, 40.0), rate(1000, 4000.0), {"name": "", "error": "memory"}], cpu)
    assert found["times_cpu_at_this_size"] == {1: 4.0}
    assert found["times_cpu_at_its_best"] == {1: 2.0, 1000: 200.0}


def test_bad_options():
    for option, value in (("minutes", 0.0), ("parts", ()), ("replicas", ())):
        with pytest.raises(ValueError, match=option):
            Config(**{option: value})


def test_help(says):
    status, text = says("benchmarks.gpu", "--help")
    assert status == 0
    assert all(f"--{name}" in text for name in ("minutes", "parts", "cpu-figures", "commit", "out", "quick"))
