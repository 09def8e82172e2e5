"""The main job: its command line, what it writes, and what it shows."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.common import data as datasets
from experiments.common.config import default_data_dir
from experiments.common.report import mean_and_spread, text_table
from experiments.compare.run import ALL, Config, main

from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("as_users_run_it")

SMALL = {"budget": 60, "trial_steps": 20, "seeds": 2, "hidden": 8, "num_train": 200, "num_valid": 100}
SMALL |= {"jobs": 1}  # other threads do not see the precision that `as_users_run_it` sets
FIELDS = {
    *("method", "seed", "criterion", "best_value", "test_accuracy", "test_nll", "iterations", "gradients"),
    *("hvps", "hyper_updates", "seconds", "status"),
}


def check_output(folder, summary, methods, seeds):
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary) >= {"config", "environment", "runs", "table"}
    assert {(run["method"], run["seed"]) for run in summary["runs"]} == {(m, s) for m in methods for s in range(seeds)}
    for run in summary["runs"]:
        assert set(run) >= FIELDS
        assert np.isfinite(run["best_value"]) and 0 <= run["test_accuracy"] <= 1
        if run["method"] != "best_scalar":
            assert run["iterations"] == summary["config"]["budget"]
    with open(folder / "history.csv") as file:
        lines = list(csv.DictReader(file))
    best = {(line["method"], int(line["seed"])): float(line["best"]) for line in lines}
    assert best == pytest.approx({(run["method"], run["seed"]): run["best_value"] for run in summary["runs"]})
    for name in ("criterion_iterations", "criterion_seconds", "log_variances", "first_layer"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    assert json.loads((folder / "config.json").read_text()) == summary["config"]


SOME = ("greedy", "drmad", "random_scalar", "tpe", "plain")
MOST = tuple(name for name in ALL if name != "best_scalar")  # that takes nine times as long as another


@pytest.mark.variants(slow=["some"], quick=[])
@pytest.mark.parametrize("methods", [SOME, MOST], ids=["some", "most"])
def test_on_the_elbo_hypergradients_per_weight_beat_search(tmp_path, capsys, methods):
    summary = main(Config(out=tmp_path, seeds=1, methods=methods))
    check_output(tmp_path, summary, methods, seeds=1)
    value = {run["method"]: run["best_value"] for run in summary["runs"]}
    by_gradient = {name: value.pop(name) for name in ("greedy", "drmad", "hoag", "reverse") if name in methods}
    assert by_gradient["greedy"] <= 0.55
    assert max(by_gradient.values()) <= 0.70
    assert max(by_gradient.values()) < min(value.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*methods, "test_nll"))


@pytest.mark.variants(slow=["validation"], quick=[])
@pytest.mark.parametrize("criterion", ["validation", "evidence"])
def test_the_other_criteria_write_what_they_find(tmp_path, criterion):
    methods = ("greedy", "random", "tpe", "best_scalar")
    config = Config(criterion=criterion, methods=methods, out=tmp_path, **SMALL)
    check_output(tmp_path, main(config), methods, seeds=2)


@pytest.mark.sweep
@pytest.mark.parametrize("unit", ["gradients", "seconds"])
def test_budgets_in_other_units_are_kept(tmp_path, unit):
    budget = {"gradients": 200.0, "seconds": 0.5}[unit]
    config = Config(
        out=tmp_path, methods=("greedy", "random"), **(SMALL | {"seeds": 1, "budget": budget, "budget_unit": unit})
    )
    for run in main(config)["runs"]:
        assert run[unit] >= budget or run["iterations"] >= 1
        if unit == "gradients":
            step = {"greedy": 4, "random": 20}[run["method"]]
            assert budget <= run["gradients"] < budget + step


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random_scalar", pytest.param("greedy", marks=pytest.mark.slow)])
def test_a_finished_run_is_not_repeated_and_another_one_refused(tmp_path, method):
    config = Config(out=tmp_path, methods=(method,), **SMALL)
    first = main(config)
    (tmp_path / "cells" / f"{method}-1.json").unlink()
    second = main(config)
    same = lambda summary: [{k: v for k, v in run.items() if "seconds" not in k} for run in summary["runs"]]
    assert same(second) == same(first)
    assert second["runs"][0] == first["runs"][0]
    with pytest.raises(SystemExit, match="hyper_lr"):
        main(Config(out=tmp_path, methods=(method,), hyper_lr=0.2, **SMALL))


@pytest.mark.slow
def test_runs_side_by_side_are_runs_one_by_one(tmp_path):
    methods = ("random", "random_scalar")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (SMALL | {"jobs": 2}).items()]
    command = [sys.executable, "-m", "experiments.compare", "--methods", *methods, *options]
    subprocess.run([*command, "--out", tmp_path / "2"], cwd=ROOT, check=True)
    found = main(Config(out=tmp_path / "1", methods=methods, **SMALL))["runs"]
    for one, other in zip(found, json.loads((tmp_path / "2" / "summary.json").read_text())["runs"], strict=True):
        assert (one["method"], one["seed"], one["gradients"]) == (other["method"], other["seed"], other["gradients"])
        assert one["best_value"] == pytest.approx(other["best_value"], rel=1e-5)


def test_help_is_printed_and_bad_options_are_named(says):
    status, text = says("compare", "--help")
    assert status == 0
    for option in ("--criterion", "--data", "--data-dir", "--methods", "--budget", "--budget-unit", "--seeds", "--out"):
        assert option in text
    for bad in (["--budget", "0"], ["--budget", "-3"], ["--methods", "grid"], ["--seeds", "0"], ["--knots", "99"]):
        status, text = says("compare", *bad)
        assert status != 0 and bad[0].lstrip("-") in text


def test_digits_are_split_without_overlap():
    data = datasets.split("digits", None, seed=3, num_train=800, num_valid=400)
    assert [len(part.y) for part in data] == [800, 400, 597]
    everything = np.concatenate([part.x for part in data]) + datasets.digits().x.mean(0) * 0
    shifted = {tuple(np.round(row, 4)) for row in everything}
    assert len(shifted) == len({tuple(np.round(row, 4)) for row in datasets.digits().x})
    np.testing.assert_allclose(data.train.x.mean(0), 0, atol=1e-6)
    with pytest.raises(ValueError, match="num_train"):
        datasets.split("digits", None, seed=3, num_train=1500, num_valid=400)


@pytest.mark.skipif(default_data_dir() is None, reason="HYPERGRAD_DATA is not set")
def test_mnist_files_are_read():
    train, test = datasets.mnist(default_data_dir())
    assert train.x.shape == (60_000, 784) and test.x.shape == (10_000, 784)
    assert np.bincount(train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(train.x.mean() - 0.1307) < 1e-4


@pytest.mark.row(37)
def test_a_damaged_mnist_file_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not the file")
    with pytest.raises(ValueError, match="SHA-256"):
        datasets.mnist(tmp_path)


def test_tables_are_mean_and_spread():
    assert mean_and_spread([3, 3]) == "3"
    assert mean_and_spread([1.0, 2.0, None]) == "1.5 ± 0.71 (2 of 3)"
    assert mean_and_spread([None]) == "-"
    assert re.match(r"\| a +\| b +\|\n\|-+\|-+\|\n\| 1", text_table([{"a": 1, "b": "x"}]))
