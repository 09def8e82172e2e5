"""The experiment on sparse penalties: its data, that hypergradients come as low as a grid, and what is written."""

import copy
import dataclasses
import json

import jax
import jaxopt
import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, Lasso
from sklearn.svm import LinearSVC

import hypergrad as hg
from experiments.common import binary
from experiments.sparse import coordinate, data, model, run, search, svm

pytestmark = pytest.mark.usefixtures("as_users_run_it")


SOURCE = binary.find("breast_cancer", None)


@pytest.mark.parametrize(("name", "source"), [("diabetes", None), ("breast_cancer", SOURCE)])
def test_data_are_scaled_for_steps_of_one_and_vanish_at_the_largest_penalty(name, source):
    splits = data.load(name, 0, source, 3000)
    train = splits.train
    curvature = 4 if source else 1
    np.testing.assert_allclose(np.linalg.norm(train.x, 2) ** 2 / len(train.x) / curvature, 1, rtol=1e-9)
    with jax.enable_x64(True):
        problem = (run.LOGISTIC if source else run.LASSO)["validation"](splits)
        weights = lambda factor: problem.train(h := np.log(factor * problem.largest), problem.start(h)).state.params
        assert not np.any(weights(1.001)) and np.any(weights(0.95))


def test_the_dual_of_the_support_vector_machine_is_that_of_scikit_learn():
    splits = data.load("breast_cancer", 0, SOURCE, 300)
    with jax.enable_x64(True):
        problem = svm.Machine(splits)
        h = np.log(problem.largest) - np.log(5)
        alpha = np.asarray(problem.train(h, problem.start(h), 1e-9).state.params)
        bound = problem.train(h := np.log(1.001 * problem.largest), problem.start(h), 1e-9).state.params
        np.testing.assert_allclose(bound, np.exp(-h), rtol=1e-9)
    penalty = 5 / problem.largest
    known = LinearSVC(loss="hinge", C=penalty, fit_intercept=False, tol=1e-10, max_iter=10**6, random_state=0)
    known.fit(splits.train.x, splits.train.y)
    assert 0 < np.sum((alpha > 0) & (alpha < penalty)) < len(alpha)
    np.testing.assert_allclose(known.coef_[0], (alpha * splits.train.y) @ splits.train.x, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_training_ends_at_the_proximal_gradient_that_was_asked_for_in_fewer_steps():
    """The way is from strong to weak penalties; the same steps without restarts of the momentum are compared with."""
    with jax.enable_x64(True):
        problem = run.LASSO["validation"](data.load("generated", 0, None, 3000))
        loss, train, prox = problem.bilevel.inner_loss, problem.bilevel.train, problem.inner.prox
        plain = copy.copy(problem)
        plain.inner = hg.JaxoptSolver(jaxopt.ProximalGradient, **problem.inner.options)
        steps = []
        for solved in (problem, plain):
            state, gradients = solved.start(np.log(solved.largest)), 0
            for h in np.log(solved.largest) - np.array([1.0, 2.0, 4.0]):
                trained = solved.train(h, state)
                state, gradients = trained.state, gradients + int(trained.gradients)
                if solved is problem:
                    w = state.params
                    step = prox(w - jax.grad(loss)(w, h, train, jax.random.key(0)), h, 1.0)
                    assert 0 < np.linalg.norm(w - step) <= model.TIGHT * solved.scale
            steps.append(gradients)
    assert 5 * steps[0] < steps[1]


REGRESSIONS = {
    "lasso": (model.lasso, lambda h: Lasso(alpha=np.exp(h))),
    "non-negative": (model.non_negative_lasso, lambda h: Lasso(alpha=np.exp(h), positive=True)),
    "elastic net": (
        model.elastic_net,
        lambda h: ElasticNet(alpha=np.sum(np.exp(h)), l1_ratio=np.exp(h[0]) / np.sum(np.exp(h))),
    ),
}


@pytest.mark.variants(quick=["elastic net"], slow=["non-negative", "lasso"])
@pytest.mark.parametrize("kind", REGRESSIONS)
def test_cross_validated_regressions_are_those_of_scikit_learn(kind):
    """Models of all folds, their mean loss, and the model of all rows."""
    splits = data.load("diabetes", 0, None, 300, folds=model.FOLDS)
    prox, make = REGRESSIONS[kind]
    with jax.enable_x64(True):
        problem = model.CrossValidated(model.squares, prox, splits)
        h = np.log(problem.largest) - (np.array([1.0, 2.0]) if kind == "elastic net" else np.array(2.0))
        trained = problem.train(h, problem.start(h), 1e-9)
        weights, test_loss = problem.final(h)
    fit = lambda rows: make(h).set_params(fit_intercept=False, tol=1e-12, max_iter=10**6).fit(*rows)
    loss = lambda found, rows: np.mean((found.predict(rows.x) - rows.y) ** 2) / 2
    rows = splits.train
    folds = [(fit(rows.take(train)), rows.take(valid)) for train, valid in problem.splits]
    np.testing.assert_allclose(trained.state.params, [found.coef_ for found, _ in folds], atol=1e-6)
    np.testing.assert_allclose(trained.loss, np.mean([loss(*fold) for fold in folds]), rtol=1e-6)
    np.testing.assert_allclose(weights, (whole := fit(rows)).coef_, atol=1e-5)
    np.testing.assert_allclose(test_loss, loss(whole, splits.test), rtol=1e-5)
    assert 0 < np.sum(weights == 0) < len(weights)


def test_folds_are_scaled_for_steps_of_one():
    rows = data.load("diabetes", 0, None, 300, folds=model.FOLDS).train
    assert len(rows.y) == 200
    with jax.enable_x64(True):
        splits = run.LASSO["cv"](data.load("diabetes", 0, None, 300, folds=model.FOLDS)).splits
    sizes = [np.linalg.norm(rows.x[train], 2) ** 2 / len(train) for train, _ in splits]
    assert min(sizes) > 0.7 and max(sizes) <= 1


@pytest.mark.parametrize("kind", ["lasso", "non-negative", "elastic net", "logistic"])
def test_celer_and_scikit_learn_choose_the_best_of_their_grids(kind):
    pytest.importorskip("celer")
    source = SOURCE if kind == "logistic" else None
    splits = data.load("breast_cancer" if source else "diabetes", 0, source, 300)
    prox = {"elastic net": model.elastic_net, "non-negative": model.non_negative_lasso}.get(kind, model.lasso)
    with jax.enable_x64(True):
        problem = model.Problem(model.logistic if source else model.squares, prox, splits)
        found = {name: solve(problem, 24) for name, solve in coordinate.methods(kind).items()}
        if kind == "logistic":
            grid = search.tried(problem, search.lattice(problem.limits, 1, 24))
            found["grid"] = min(grid, key=lambda line: line["loss"])
    first, second = (line["h"] for line in found.values())
    np.testing.assert_allclose(first, second, atol=1e-9)


def test_solvers_that_are_not_installed_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(coordinate.importlib.util, "find_spec", lambda name: None)
    assert list(coordinate.methods("lasso")) == ["LassoCV"]
    assert "celer is left out" in capsys.readouterr().out


def test_tasks_without_their_data_or_criterion_are_left_out(tmp_path, capsys):
    config = run.Config(tasks=("lasso", "logistic, a9a"), data_dir=tmp_path)
    assert run.present(config) == ("lasso",)
    assert "logistic, a9a is left out" in capsys.readouterr().out
    config = run.Config(tasks=("support vectors, breast cancer",), criterion="cv", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no task is left"):
        run.present(config)
    assert "it has no criterion cv" in capsys.readouterr().out


def test_generated_features_are_correlated_with_their_neighbours():
    rows = data.generated(0)
    assert rows.x.shape == (600, 1000)
    found = np.mean([np.corrcoef(rows.x[:, j], rows.x[:, j + 1])[0, 1] for j in range(0, 999, 9)])
    np.testing.assert_allclose(found, data.CORRELATION, atol=0.02)


def test_a_lattice_of_two_penalties_covers_the_box():
    points = search.lattice((-4.0, 1.0), 2, 9)
    assert points.shape == (9, 2)
    np.testing.assert_allclose(sorted(set(points[:, 0])), [-4.0, -1.5, 1.0])


@pytest.mark.slow
def test_descents_come_through_where_the_support_is_larger_than_the_rows():
    """The linear system is singular there, and has no solution."""
    with jax.enable_x64(True):
        problem = run.TASKS["non-negative least squares"].problems["validation"](data.load("generated", 1, None, 3000))
        path = search.descended(problem, search.lattice(problem.limits, 1, 100)[0], 3900)
        run.judge(problem, path)
    assert path[-1]["least"] < 0.18


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["validation", pytest.param("cv", marks=pytest.mark.slow)])
def test_hypergradients_come_as_low_as_the_grid(criterion, tmp_path, capsys):
    summary = run.main(dataclasses.replace(run.Config(criterion=criterion, out=tmp_path), **run.QUICK))
    assert "one penalty per feature" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    found = {line["method"]: line for line in summary["runs"]}
    assert set(found) - {"celer"} == {*search.METHODS, "LassoCV", "one penalty per feature"}
    least = found["grid"]["loss"]
    assert found["hypergradient"]["loss"] <= least * (1 + run.NEAR)
    np.testing.assert_allclose(found["LassoCV"]["loss"], least, rtol=1e-4)  # the same grid, another solver
    assert found["one penalty per feature"]["loss"] < found["hypergradient"]["loss"]
    for method in ("grid", "random", "TPE"):
        assert found[method]["above_at_gradients"] >= found[method]["loss"] - least - 1e-4
    assert found["TPE"]["gradients"] >= found["grid"]["gradients"]
    for unit in run.UNITS:
        assert (tmp_path / f"suboptimality_{unit}.png").stat().st_size > 5000
