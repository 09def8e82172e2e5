"""The experiment on sparse penalties: its data, that hypergradients come as low as a grid, and what is written."""

import json

import jax
import numpy as np
import pytest

from experiments.sparse import data, model, run, search


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Single precision, which the experiment leaves by itself, and optax's own type promotion."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer"])
def test_data_are_scaled_for_steps_of_one_and_vanish_at_the_largest_penalty(name):
    sparse = data.load(name, seed=0)
    train = sparse.splits.train
    curvature = 4 if name == "breast_cancer" else 1
    np.testing.assert_allclose(np.linalg.norm(train.x, 2) ** 2 / len(train.x) / curvature, 1, rtol=1e-9)
    with jax.enable_x64(True):
        loss = model.logistic if name == "breast_cancer" else model.squares
        problem = model.Problem(loss, model.lasso, train, sparse.splits.valid)
        weights = lambda factor: (
            problem.train(h := np.log(factor * sparse.largest_penalty), problem.start(h)).state.params
        )
        assert not np.any(weights(1.001)) and np.any(weights(0.95))


def test_generated_features_are_correlated_with_their_neighbours():
    rows = data.generated(0)
    assert rows.x.shape == (600, 1000)
    found = np.mean([np.corrcoef(rows.x[:, j], rows.x[:, j + 1])[0, 1] for j in range(0, 999, 9)])
    np.testing.assert_allclose(found, data.CORRELATION, atol=0.02)


def test_a_lattice_of_two_penalties_covers_the_box():
    points = search.lattice(1.0, 2, 9)
    assert points.shape == (9, 2)
    np.testing.assert_allclose(sorted(set(points[:, 0])), np.linspace(*search.box(1.0), 3))


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
