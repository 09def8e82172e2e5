"""Runs that diverged: tables count them, plots leave them out, and the rest is reported."""

import json

import numpy as np
import pytest

from experiments.common.downloads import DataError
from experiments.common.figures import band, figure
from experiments.common.report import mean_and_spread
from experiments.publish import publish
from experiments.tabular.report import report, verdicts
from experiments.tabular.run import Config
from experiments.vision.report import _points

from tests.experiments.test_common import run_command


def run(method, seed, error, start="decay e^-4"):
    measured = {"test_error": error, "test_nll": error, "calibration_error": error, "valid_loss": error}
    return {"set": "s", "start": start, "method": method, "seed": seed, "gradients": 9, "seconds": 1.0} | measured


def test_a_mean_says_how_many_runs_it_is_of():
    assert mean_and_spread([1.0, None, 3.0]) == "2 ± 1.4 (2 of 3)" and mean_and_spread([None, 1.0]) == "1 (1 of 2)"
    assert mean_and_spread(iter([None])) == "-"


def test_a_run_that_diverged_is_behind():
    plain = [run("plain", seed, value) for seed, value in enumerate((None, 2.0, None))]
    tune = [run("tune", seed, value) for seed, value in enumerate((1.0, 1.0, None))]
    (line,) = verdicts(plain + tune)
    assert (line["ahead"], line["level"], line["behind"]) == (1, 0, 0)
    (line,) = verdicts([*plain[:1], run("tune", 0, None)])
    assert line["level"] == 1


@pytest.mark.parametrize("values", [(1.0, None), (None, None)])
def test_tabular_reports_what_diverged(tmp_path, values):
    every = [run(method, seed, value) for method in ("plain", "tune") for seed, value in enumerate(values)]
    fixed = {"decay": 0, "rate": 1, "b1": 0}
    ends = {"rate": 0.1, "b1": 0.9}
    cells = [{"runs": [one], "history": [one], "fixed": [one | fixed], "hparams": ends} for one in every]
    report(Config(out=tmp_path, seeds=2), cells)
    assert json.loads((tmp_path / "summary.json").read_text())["runs"][1]["test_error"] is None


def test_plots_take_what_was_not_measured(tmp_path):
    with figure(tmp_path / "a.png") as axis:
        band(axis, [0, 1], [[1.0, None], [2.0, 3.0]], "label", "#000000")
        _points(axis, [{"method": "plain", "test_error": None}, {"method": "plain", "test_error": 2.0}])
    assert np.isnan(axis.lines[-1].get_xdata()[0])


def test_data_that_cannot_be_used_end_a_command_with_one_line(tmp_path, monkeypatch):
    def main(config):
        raise DataError("a.txt holds nothing")

    with pytest.raises(SystemExit, match="^a.txt holds nothing$"):
        run_command(monkeypatch, main, "--out", str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": []}'])
def test_what_is_no_summary_is_not_published(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(SystemExit, match="summary.json is no summary of a run"):
        publish(tmp_path)


def test_publishing_answers_help(says):
    status, text = says("publish", "--help")
    assert status == 0 and "output folders of finished runs" in text
