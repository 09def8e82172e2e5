"""Hyper-cleaning, overfitting a validation set, distillation: what they write and which way their claims point."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from experiments import distillation, overfit_validation
from experiments.common.data import MNIST, Rows, fashion_mnist
from experiments.hypercleaning import run as hypercleaning
from experiments.hypercleaning.model import corrupt

from tests.helpers import patterns

pytestmark = pytest.mark.usefixtures("as_users_run_it")

STUDIES = {
    "hypercleaning": (hypercleaning.Config, {"noises": (1.5,)}),
    "overfit_validation": (overfit_validation.Config, {"start": 9.0}),
    "distillation": (distillation.Config, {"hidden": -1}),
}


def check_files(folder, summary, plots):
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary) >= {"config", "environment", "runs", "table"}
    assert "\n\n| " in (folder / "table.md").read_text()
    for name in plots:
        assert (folder / f"{name}.png").stat().st_size > 5000
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small_images(monkeypatch):
    images = [Rows(*patterns(rows, seed, squares=28, level=0.7)) for rows, seed in ((800, 1), (300, 2))]
    monkeypatch.setattr(hypercleaning, "image_sets", lambda name, folder: images)


CLEANING = {"noises": (0.5,), "seeds": 1, "num_train": 200, "num_valid": 400, "batch": 50, "outer_batch": 100}
CLEANING |= {"inner_lr": 0.05}


@pytest.mark.slow
def test_hypercleaning_finds_the_wrong_labels(tmp_path, small_images, capsys):
    config = hypercleaning.Config(out=tmp_path, methods=("none", "gg"), hyper_steps=50, protocol="split", **CLEANING)
    summary = hypercleaning.main(config)
    lines = check_files(tmp_path, summary, ("accuracy", "weights"))
    runs = {run["method"]: run for run in summary["runs"]}
    assert runs["none"]["auc"] == 0.5
    assert runs["gg"]["auc"] > 0.8
    assert runs["gg"]["test_accuracy"] > runs["none"]["test_accuracy"]
    assert {line["hyper_steps"] for line in lines} == {str(step) for step in range(5, 51, 5)}
    assert [line["published"] for line in summary["table"]] == [51.52, 77.73]
    assert "51.52" in capsys.readouterr().out


def test_hypercleaning_protocols(small_images):
    config = hypercleaning.Config(**CLEANING)
    images = hypercleaning.image_sets("mnist", None)
    sample = hypercleaning.draw_images(config, images, 0.5, 0)
    assert sample.valid is sample.test
    config = hypercleaning.Config(protocol="split", **CLEANING)
    sample = hypercleaning.draw_images(config, images, 0.5, 0)
    seen = {tuple(row) for row in sample.train.x}
    assert len(sample.valid.y) == 400 and not seen & {tuple(row) for row in sample.valid.x}


@pytest.mark.parametrize("noise", [0.3, 0.5])
def test_wrong_labels_are_those_of_other_classes(noise):
    rows = Rows(*patterns(4000, 3))
    train, wrong = corrupt(rows, noise, seed=0)
    np.testing.assert_array_equal(train.y != rows.y, wrong)
    assert wrong.mean() == pytest.approx(noise)
    assert not np.array_equal(corrupt(rows, noise, seed=1)[1], wrong)


def test_fashion_mnist_is_looked_for_and_not_taken_for_mnist(tmp_path):
    with pytest.raises(FileNotFoundError, match="Fashion"):
        fashion_mnist(tmp_path)
    folder = os.environ.get("HYPERGRAD_DATA")
    if folder and (Path(folder) / "mnist" / next(iter(MNIST))).exists():
        with pytest.raises(ValueError, match="Fashion"):
            fashion_mnist(Path(folder) / "mnist")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neumann5", pytest.param("reverse", marks=pytest.mark.slow)])
def test_validation_set_is_overfitted(tmp_path, method):
    config = overfit_validation.Config(
        out=tmp_path, methods=(method,), seeds=1, hyper_steps=80, num_valid=30, hidden=16
    )
    summary = overfit_validation.main(config)
    lines = check_files(tmp_path, summary, ("accuracy",))
    assert len(lines) == 40
    for run in summary["runs"]:
        assert run["valid"] >= 95 and run["valid"] > run["valid_first"]
        assert run["test"] < run["valid"]
        assert run["num_hparams"] == 64 * 16 + 16 + 16 * 10 + 10


@pytest.mark.slow
def test_ten_learned_images_beat_ten_real_ones(tmp_path):
    config = distillation.Config(out=tmp_path, methods=("reverse",), seeds=1, num_real=300)
    summary = distillation.main(config)
    lines = check_files(tmp_path, summary, ("loss", "images"))
    assert len(lines) == 40 and float(lines[-1]["outer_loss"]) < float(lines[0]["outer_loss"]) / 2
    runs = {run["method"]: run for run in summary["runs"]}
    assert runs["reverse"]["test_accuracy"] > runs["random images"]["test_accuracy"] + 5
    assert runs["reverse"]["images"] == 10 and runs["all images"]["images"] == 300


@pytest.mark.parametrize("name", STUDIES)
def test_impossible_options_are_named(name, says):
    config, bad = STUDIES[name]
    with pytest.raises(ValueError, match=next(iter(bad))):
        config(**bad)
    with pytest.raises(ValueError, match="seeds"):
        config(seeds=0)
    with pytest.raises(ValueError, match="methods"):
        config(methods=())
    status, text = says(name, "--help")
    assert status == 0
    for option in ("--quick", "--seeds", "--out", "--data-dir", "--methods", "Published"):
        assert option in text
