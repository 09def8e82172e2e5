"""The experiment on sparse penalties: its data, that hypergradients come as low as a grid, and what is written."""

import json

import jax
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from experiments.common import binary
from experiments.sparse import data, run, search, svm

pytestmark = pytest.mark.usefixtures("as_users_run_it")


SOURCE = binary.find("breast_cancer", None)


@pytest.mark.parametrize(("name", "source"), [("diabetes", None), ("breast_cancer", SOURCE)])
def test_data_are_scaled_for_steps_of_one_and_vanish_at_the_largest_penalty(name, source):
    splits = data.load(name, 0, source, 3000)
    train = splits.train
    curvature = 4 if source else 1
    np.testing.assert_allclose(np.linalg.norm(train.x, 2) ** 2 / len(train.x) / curvature, 1, rtol=1e-9)
    with jax.enable_x64(True):
        problem = (run.LOGISTIC if source else run.LASSO)(train, splits.valid)
        weights = lambda factor: problem.train(h := np.log(factor * problem.largest), problem.start(h)).state.params
        assert not np.any(weights(1.001)) and np.any(weights(0.95))


def test_the_dual_of_the_support_vector_machine_is_that_of_scikit_learn():
    splits = data.load("breast_cancer", 0, SOURCE, 300)
    with jax.enable_x64(True):
        problem = svm.Machine(splits.train, splits.valid)
        h = np.log(problem.largest) - np.log(5)
        alpha = np.asarray(problem.train(h, problem.start(h), 1e-9).state.params)
        bound = problem.train(h := np.log(1.001 * problem.largest), problem.start(h), 1e-9).state.params
        np.testing.assert_allclose(bound, np.exp(-h), rtol=1e-9)
    penalty = 5 / problem.largest
    known = LinearSVC(loss="hinge", C=penalty, fit_intercept=False, tol=1e-10, max_iter=10**6, random_state=0)
    known.fit(splits.train.x, splits.train.y)
    assert 0 < np.sum((alpha > 0) & (alpha < penalty)) < len(alpha)
    np.testing.assert_allclose(known.coef_[0], (alpha * splits.train.y) @ splits.train.x, rtol=1e-5, atol=1e-7)


def test_tasks_without_their_data_are_left_out(tmp_path, capsys):
    config = run.Config(tasks=("lasso", "logistic, a9a"), data_dir=tmp_path)
    assert run.present(config) == ("lasso",)
    assert "logistic, a9a is left out" in capsys.readouterr().out


def test_generated_features_are_correlated_with_their_neighbours():
    rows = data.generated(0)
    assert rows.x.shape == (600, 1000)
    found = np.mean([np.corrcoef(rows.x[:, j], rows.x[:, j + 1])[0, 1] for j in range(0, 999, 9)])
    np.testing.assert_allclose(found, data.CORRELATION, atol=0.02)


def test_a_lattice_of_two_penalties_covers_the_box():
    points = search.lattice((-4.0, 1.0), 2, 9)
    assert points.shape == (9, 2)
    np.testing.assert_allclose(sorted(set(points[:, 0])), [-4.0, -1.5, 1.0])


def test_hypergradients_come_as_low_as_the_grid(tmp_path, capsys):
    config = run.Config(tasks=("lasso, diabetes",), seeds=1, points=16, share=0.5, feature_gradients=500, out=tmp_path)
    summary = run.main(config)
    assert "one penalty per feature" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    found = {line["method"]: line for line in summary["runs"]}
    assert set(found) == {*search.METHODS, "LassoCV", "one penalty per feature"}
    least = found["grid"]["valid_loss"]
    assert found["hypergradient"]["valid_loss"] <= least * (1 + run.NEAR)
    np.testing.assert_allclose(found["LassoCV"]["valid_loss"], least, rtol=1e-4)  # the same grid, another solver
    assert found["one penalty per feature"]["valid_loss"] < found["hypergradient"]["valid_loss"]
    for unit in run.UNITS:
        assert (tmp_path / f"suboptimality_{unit}.png").stat().st_size > 5000
