"""The benchmark of ensembles: what it writes, and that both programs are the same training."""

import csv
import json
import os
import subprocess
import sys

import equinox as eqx
import pytest

import ensembles as ens
from experiments.benchmarks import ensembles as benchmark
from experiments.benchmarks.ensembles import ALL, ONE, SPREAD, Config, main
from hypergrad.testing.tolerances import relative_error

from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("as_users_run_it")

SMALL = {"sizes": (6,), "steps": 10, "rounds": 2, "alone": 2}


@pytest.mark.slow
def test_what_is_written(tmp_path, capsys):
    summary = main(Config(out=tmp_path, **SMALL))
    assert {(run["replicas"], run["how"], run["round"]) for run in summary["runs"]} == {
        (num, how, index) for num, how in ((2, ONE), (6, ALL), (6, SPREAD)) for index in (0, 1)
    }
    written = json.loads((tmp_path / "summary.json").read_text())
    assert set(written) == {"config", "environment", "runs", "table"}
    with open(tmp_path / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == len(written["runs"]) == 6
    assert (tmp_path / "ensembles.png").stat().st_size > 5000
    held = {(run["replicas"], run["how"]): run["bytes"] for run in written["runs"]}
    assert 0 < held[6, ALL] < 6 * held[2, ONE]  # what is shared is held once
    assert held[6, ALL] < held[6, SPREAD]  # once per device
    assert all(run["wall_ms"] > 0 for run in written["runs"])
    printed = capsys.readouterr().out
    assert "6, together" in printed and "2, one by one" in printed


@pytest.mark.slow
def test_both_programs_are_the_same_training():
    inner = benchmark.programs(Config(**SMALL))
    models, (grid, linear, targets) = benchmark.setting(0, 3)
    train_all, _ = benchmark.trainer(inner[ALL], benchmark.LIFTED, models, (grid, linear, targets))
    together = train_all(models, (grid, linear, targets))
    shape = [layer.weight.shape for layer in together.layers]
    assert shape == [(3, 25, 2), (3, 20, 25), (3, 8, 20)]
    arrays = lambda tree: eqx.filter(tree, eqx.is_inexact_array)
    singles = [(ens.replica(models, r), (grid, linear, targets[r])) for r in range(3)]
    train_one, _ = benchmark.trainer(inner[ONE], benchmark.loss, *singles[0])
    for r, single in enumerate(singles):
        one = train_one(*single)
        assert relative_error(arrays(one), arrays(single[0])) > 0.01
        assert relative_error(arrays(ens.replica(together, r)), arrays(one)) < 1e-5


def test_gains_are_ratios_within_a_round():
    row = lambda index, how, num, ms: {
        **{"round": index, "how": how, "replicas": num},
        **{"wall_ms": ms, "cpu_ms": 2 * ms, "energy_mj": None, "bytes": 1000},
    }
    table = benchmark.summarise([row(0, ONE, 1, 8.0), row(0, ALL, 4, 2.0), row(1, ONE, 1, 4.0), row(1, ALL, 4, 2.0)])
    assert table[1]["gain, wall"] == "3 (2 to 4)"
    assert table[1]["kB a replica"] == "0.25"
    assert table[1]["energy mJ"] == "not measurable here"


def test_bad_options_are_named():
    for option, value in (("steps", 0), ("rounds", 0), ("alone", 0), ("sizes", ()), ("sizes", (0,))):
        with pytest.raises(ValueError, match=option):
            Config(**{option: value})


@pytest.mark.slow
def test_help_is_printed():
    command = [sys.executable, "-m", "experiments.benchmarks.ensembles", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert shown.returncode == 0
    assert all(f"--{name}" in shown.stdout for name in ("sizes", "steps", "rounds", "alone", "out", "seed", "quick"))
