"""HOAG's experiment: the exact curve, what is written, and that hypergradients get nearer than a grid."""

import csv
import itertools
import json

import jax
import numpy as np
import pytest

from experiments.common import binary
from experiments.common.command import command
from experiments.hoag import model, per_feature, run
from experiments.hoag.search import cost_to, judged

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_a_folder_without_any_data_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such files in .*: a9a; name a folder with --data-dir"):
        run.main(run.Config(data=("a9a",), data_dir=tmp_path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_penalty_and_one_per_feature(tmp_path, capsys):
    methods = ("HOAG, exponential", "HOAG, quadratic", "grid", "random")
    config = run.Config(
        data=("breast_cancer", "a9a"),
        data_dir=tmp_path,
        methods=methods,
        seeds=1,
        budget=400,
        feature_budget=800,
        feature_seeds=1,
        out=tmp_path,
    )
    summary = run.main(config)
    printed = capsys.readouterr().out
    assert "left out" in printed and "a9a" in printed
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    found = {line["method"]: line for line in summary["runs"]}
    assert set(found) == set(methods)
    assert found["HOAG, quadratic"]["suboptimality"] < 1e-4
    assert found["HOAG, exponential"]["suboptimality"] < found["grid"]["suboptimality"]
    with open(tmp_path / "history.csv") as file:
        lines = list(csv.DictReader(file))
    for name in methods:
        spent = [int(line["gradients"]) for line in lines if line["method"] == name]
        assert spent == sorted(spent) and spent[-2] < config.budget <= spent[-1]
    (feature,) = summary["per_feature"]
    assert feature["gradients_to_reference"] <= 800 and feature["inner_limit_hits"] == 0
    assert feature["largest_rise"] <= 1e-4
    for name in ("suboptimality_gradients", "suboptimality_seconds", "per_feature"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_exact_curve_is_the_solved_problem():
    data = binary.thirds(binary.load(binary.Source("breast_cancer", None)), seed=0, most=300)
    with jax.enable_x64(True):
        problem, params = model.make_problem(data.train, data.valid)
        inner = model.lbfgs(2000)
        train, start = model.make_trainer(inner), inner.init(problem, params, np.asarray(0.0))
        curve = model.exact_curve(train, problem, start)
        for log_penalty in (-3.3, 0.1, 7.7):
            assert float(train(problem, log_penalty, start, 1e-10).loss) == pytest.approx(
                curve.loss(log_penalty), abs=1e-7
            )
    assert curve.best <= curve.loss(np.linspace(*model.BOX, 999)).min()


def test_costs_are_read_off_the_path():
    curve = model.Curve(lambda x: np.asarray(x) ** 2, 0.0)
    path = [
        {"log_penalty": x, "gradients": g, "seconds": g / 10} for x, g in ((2.0, 5), (0.1, 9), (1.0, 12), (0.0, 20))
    ]
    path = judged(path, curve)
    assert [line["suboptimality"] for line in path] == pytest.approx([4, 0.01, 0.01, 0])
    assert cost_to(path, 0.05, "gradients") == 9 and cost_to(path, 1e-6, "seconds") == 2
    assert cost_to(path[:3], 1e-6, "gradients") is None
    assert run.reached([3, None, 5]) == "4 (2 of 3)" and run.reached([None]) == "-"


def test_an_ever_finer_grid_repeats_nothing():
    points = list(itertools.islice(model.ever_finer_grid(), 31))
    np.testing.assert_allclose(np.diff(sorted(points)), (model.BOX[1] - model.BOX[0]) / 32)


def test_two_classes_in_three_parts(tmp_path):
    source = binary.find("breast_cancer", None)
    parts = binary.thirds(binary.load(source), 1, 300)
    assert [len(part.y) for part in parts] == [100, 100, 100]
    np.testing.assert_allclose(parts.train.x.std(0), 1)
    assert set(parts.train.y) == {-1.0, 1.0}
    assert binary.find("a9a", tmp_path) is None
    (tmp_path / "a9a").mkdir()
    (tmp_path / "a9a" / "a9a.npz").write_bytes(b"not the file")
    with pytest.raises(ValueError, match="SHA-256"):
        binary.load(binary.find("a9a", tmp_path))


def test_help_is_printed_and_bad_options_are_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for arguments, status, words in (
        (["--help"], 0, ("--quick", "--seeds", "--out", "--methods", "--budget", "--data-dir")),
        (["--start", "99"], 2, ("start",)),
        (["--rows", "3"], 2, ("rows",)),
        (["--methods", "newton"], 2, ("methods",)),
    ):
        monkeypatch.setattr("sys.argv", ["hoag", *arguments])
        with pytest.raises(SystemExit) as ended:
            command(run.main, run.Config(), "hoag", quick=run.QUICK)
        printed = "".join(capsys.readouterr())
        assert ended.value.code == status and all(word in printed for word in words)


def test_the_budget_is_a_tenth_of_the_reference_cost():
    """36,593 gradients and 11,679 Hessian-vector products; the budget is a tenth."""
    assert run.Config().feature_budget == per_feature.REFERENCE_COST // 10 == 4827
