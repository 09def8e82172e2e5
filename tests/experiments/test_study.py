"""The comparison study: its data, its closed forms, its criteria, and what it writes."""

import dataclasses
import gzip
import http.server
import io
import json
import tarfile
import threading
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ensembles import MeanField, evidence
from experiments.study import activity, criteria, polynomial, sweeps
from experiments.study.cell import iterations_to_gain, run_cell
from experiments.study.contest import compete
from experiments.study.groups import GROUPS, per_weight
from experiments.study.methods import TRIALS
from experiments.study.published import agreement
from experiments.study.report import compare
from experiments.study.run import Config, Table, main
from experiments.study.settings import setting

pytestmark = pytest.mark.usefixtures("as_users_run_it")

BOX = (-10.5, 2.5)


def task_of(criterion, groups=per_weight):
    return Table(setting("synthetic", None, scale=0.01), criterion, groups).task(3, "iterations")


def bound(mean, log_variance, rows):
    """The evidence bound of a linear model, written out row by row and weight by weight."""
    x, y, precision = rows.x.astype(float), rows.y.astype(float), np.exp(-log_variance)
    variance = 1 / (np.sum(x**2, 0) + precision)
    fit = sum(-((y[i] - x[i] @ mean) ** 2 + x[i] ** 2 @ variance) / 2 for i in range(len(y)))
    return fit - sum((mean**2 + variance) * precision - 1 + log_variance - np.log(variance)) / 2, variance


@pytest.mark.slow
def test_the_best_mean_field_is_a_maximum_of_the_bound_that_is_measured():
    task = task_of("elbo")
    best, mean = polynomial.best_mean_field(task.rows.train, BOX)
    precision_free = mean**2 + 1 / np.sum(task.rows.train.x.astype(float) ** 2, 0)
    log_variance = np.clip(np.log(precision_free), *BOX)
    for _ in range(200):
        value, variance = bound(mean, log_variance, task.rows.train)
        log_variance = np.clip(np.log(mean**2 + variance), *BOX)
    assert best - 0.02 < value <= best + 1e-6
    random = np.random.default_rng(0)
    for _ in range(20):
        moved = np.clip(log_variance + 0.1 * random.normal(size=12), *BOX)
        assert bound(mean * (1 + 0.01 * random.normal(size=12)), moved, task.rows.train)[0] <= best
    units = np.exp(polynomial.OFFSET.astype(float) / 2)  # the study trains weights in units of their own
    posterior = eqx.tree_at(
        lambda q: (q.mean.layers[0].weight, q.log_std.layers[0].weight),
        MeanField(polynomial.Linear(jax.random.key(0))),
        tuple(jnp.asarray(a, jnp.float32) for a in (mean * units, np.log(variance) / 2 + np.log(units))),
    )
    hparams = eqx.tree_at(lambda t: t.layers[0].weight, task.start, jnp.asarray(log_variance, jnp.float32))
    measured = task.criterion.evaluate(posterior, hparams, task.problem.valid, jax.random.key(0))
    assert -40 * float(measured) == pytest.approx(value, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_trials_of_every_length_spend_the_budget_and_no_more(method):
    table = Table(dataclasses.replace(setting("synthetic", None, scale=0.01), outer_steps=25), "elbo")
    task, updates = table.task(0, "iterations"), table.setting.updates
    for share in TRIALS:
        row, _, _ = run_cell(table.setting, task, table.contestants[method].make(share), lambda more: None)
        assert row["iterations"] == updates, share


@pytest.mark.variants(slow=["greedy", "plain"])
@pytest.mark.parametrize("method", ["greedy", "drmad", "hoag", "random", "tpe", "em", "random_greedy", "plain"])
def test_every_method_is_judged_by_averaged_weights_if_asked(method):
    def bound(average):
        table = Table(setting("synthetic", None, scale=0.01, average=average), "elbo")
        contestant = table.contestants[method]
        return run_cell(table.setting, table.task(0, "iterations"), contestant.make(contestant.usual))[0]["Q"]

    assert bound(0.0) == pytest.approx(bound(None), rel=1e-4)  # that of no past is the last weights
    assert abs(bound(0.99) - bound(None)) > 1e-3 * abs(bound(None))


@pytest.mark.slow
def test_a_method_that_is_measured_where_it_is_judges_no_step_again():
    """A random criterion is evaluated up to 64 times for a new best; here the one count a step is a constant."""
    table = Table(setting("synthetic", None, scale=0.01), "elbo")
    tracker, _ = compete(table.contestants["drmad"].make(0.1), table.task(0, "iterations"))
    assert int(tracker.spent.evaluations) == int(tracker.spent.hyper_updates) == len(tracker.history) > 5


def test_the_evidence_of_a_linear_model_is_exact():
    task = task_of("evidence")
    rows, h = task.rows.train, np.random.default_rng(1).uniform(-6.0, 0.0, 12)
    x, y = rows.x.astype(float), rows.y.astype(float)
    posterior = np.linalg.solve(x.T @ x + np.diag(np.exp(-h)), x.T @ y)
    weights = jnp.asarray(posterior * np.exp(polynomial.OFFSET.astype(float) / 2), jnp.float32)
    model = eqx.tree_at(lambda m: m.layers[0].weight, task.params, weights)
    hparams = eqx.tree_at(lambda t: t.layers[0].weight, task.start, jnp.asarray(h, jnp.float32))
    measured = eqx.filter_jit(task.criterion.evaluate)(model, hparams, task.problem.valid, jax.random.key(0))
    expected = multivariate_normal.logpdf(y, cov=np.eye(40) + (x * np.exp(h)) @ x.T)
    assert -40 * float(measured) == pytest.approx(expected, abs=0.01)


def test_rows_that_stand_for_more_have_the_evidence_of_all_of_them():
    x, labels = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32), jnp.array([0, 1, 2, 1, 0, 2])
    loss = lambda w, x, likelihood: evidence.Laplace().negative_log_evidence(lambda w: x @ w, w, -1.0, likelihood)
    evidence_of = lambda x, likelihood: jax.jit(lambda w: loss(w, x, likelihood))(jnp.ones((3, 3)))
    some = evidence_of(x, criteria.Repeated(evidence.Categorical(labels), 2.0))
    both = evidence_of(np.tile(x, (2, 1)), evidence.Categorical(jnp.tile(labels, 2)))
    assert float(some) == pytest.approx(float(both), rel=1e-5)


@pytest.mark.slow
def test_cross_validation_scores_every_row_by_the_member_that_has_not_seen_it():
    task = task_of("cv")
    weights = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32) * 0.1
    members = eqx.tree_at(lambda m: m.layers[0].weight, task.params, jnp.asarray(weights))
    data = task.problem.valid
    held, units = np.asarray(data.held), np.exp(-polynomial.OFFSET / 2)
    np.testing.assert_array_equal(held.sum(1), 1)
    np.testing.assert_array_equal(held.sum(0), 10)
    wanted = sum(
        (task.rows.train.y[i] - (task.rows.train.x[i] * units) @ weights[np.argmax(held[i])]) ** 2 / 2
        for i in range(40)
    )
    measured = eqx.filter_jit(task.criterion.evaluate)(members, task.start, data, jax.random.key(0))
    assert 40 * float(measured) == pytest.approx(float(wanted), rel=1e-4)
    ahead = lambda members, data: task.criterion.inner_loss(members, task.start, data, jax.random.key(0))
    unseen = data._replace(y=data.y + 100 * data.held[:, 0])  # the rows that member 0 holds out
    first = lambda data: jax.grad(eqx.filter_jit(ahead), allow_int=True)(members, data).layers[0].weight[0]
    np.testing.assert_array_equal(first(data), first(unseen))


def test_wisdm_features_keep_users_apart():
    x, y, users = activity.read_features(activity.HERE / activity.FEATURES_FILE)
    assert x.shape == (5418, 41) and len(set(users)) == 36
    assert np.isnan(x).sum(0).max() == 381  # XPEAK
    assert np.bincount(y).tolist() == [2081, 1625, 632, 528, 306, 246]
    for seed in range(10):
        train, test = activity.split_users(users, seed)
        assert (len(set(train)), len(set(test))) == (3000, 1500)
        assert not set(users[train]) & set(users[test])
    sample, inputs, classes = activity.features(None)
    rows = sample(0).train
    assert (inputs, classes) == (41, 6)
    np.testing.assert_allclose(rows.x.mean(0), 0, atol=1e-4)


def test_the_raw_series_is_read_in_spite_of_its_malformed_lines():
    good = "".join(f"7,Walking,{i},{i % 5}.0,3.0,4.0;\n" for i in range(401))
    bad = "33,Jogging,1,1.0,2.0,3.0;33,Jogging,2,1.0,2.0,3.0;\n11,Sitting,3,1.0,2.0,;\n;\n17,Walking,0,0,0,0,;\n"
    values, labels = activity.read_series(io.StringIO(good + bad))
    assert len(values) == 401 + 3 and labels[-1] == (17, "Walking")
    x, y, users = activity.windows(values, labels)
    assert x.shape == (2, 199) and users.tolist() == [7, 7]
    np.testing.assert_allclose(x[0], [np.sqrt((i % 5) ** 2 + 25) for i in range(199)], rtol=1e-6)
    np.testing.assert_allclose(y, [np.sqrt((i % 5) ** 2 + 25) for i in (199, 399)], rtol=1e-6)
    with pytest.raises(ValueError, match="records per class"):
        activity.check_counts(labels)


@pytest.mark.slow
def test_the_raw_series_is_downloaded_and_known_by_what_else_the_archive_holds(tmp_path, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with gzip.open(activity.HERE / activity.FEATURES_FILE) as file:
        known = file.read()

    def serve(name, arff):
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for member, content in ((activity.RAW_FILE, b"7,Walking,0,1,2,3;"), (activity.ARFF_FILE, arff)):
                info = tarfile.TarInfo("WISDM_ar_v1.1/" + member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        monkeypatch.setattr(activity, "ARCHIVE", f"http://127.0.0.1:{server.server_port}/{name}")

    serve("right.tar.gz", known.replace(b"\r", b""))
    assert activity.raw_file(None).read_text() == "7,Walking,0,1,2,3;"
    (tmp_path / activity.RAW_FILE).write_text("mine")
    assert activity.raw_file(tmp_path).read_text() == "mine"
    serve("wrong.tar.gz", known.replace(b"Walking", b"Running"))
    with pytest.raises(ValueError, match="not the archive"):
        activity.raw_file(None)
    serve("missing.tar.gz", known)
    (tmp_path / "missing.tar.gz").unlink()
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        activity.raw_file(None)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", GROUPS)
def test_groups_broadcast_to_the_weights(name):
    task = task_of("elbo", GROUPS[name])
    value = task.criterion.inner_loss(task.params, task.start, task.problem.train, jax.random.key(0))
    assert np.isfinite(float(value))
    assert sum(leaf.size for leaf in jax.tree.leaves(task.start)) == (12 if name == "weights" else 1)


def test_shares_and_differences():
    run = lambda method, seed, Q: {
        **{"data": "d", "criterion": "c", "budget": "b"},
        **{"method": method, "seed": seed, "Q": Q, "Q_start": -100.0},
    }
    runs = [run("random", 0, -50.0), run("random", 1, -52.0), run("greedy", 0, -20.0), run("greedy", 1, -20.0)]
    claims = {claim["method"]: claim for claim in compare([*runs, run("hoag", 0, -24.0), run("hoag", 1, None)])}
    assert claims["greedy"]["above_random"] == 31 and claims["greedy"]["beyond_random"]
    assert claims["hoag"]["share_of_greedy"] == pytest.approx(76 / 80)
    stuck = [run("greedy", 0, -100.0), run("drmad", 0, -90.0)]
    assert all(claim["share_of_greedy"] is None for claim in compare(stuck))
    history = [{"best": best, "iterations": i} for i, best in enumerate([10.0, 5.0, 0.05, 0.0])]
    assert iterations_to_gain(history, 10.0) == 2 and iterations_to_gain(history, 1000.0) == 0


def test_what_agrees_with_the_publication():
    key = {"data": "wisdm", "criterion": "elbo", "budget": "iterations"}
    run = lambda method, seed, Q: {
        **(key | {"method": method, "seed": seed, "Q": Q, "Q_start": -9.0}),
        **{"hyper_updates": 50, "test_loglik": Q / 10},
    }
    runs = [run(*it) for it in (("random", 0, -5.0), ("random", 1, -5.0), ("greedy", 0, -4.0), ("greedy", 1, -2.0))]
    runs += [run("drmad", 0, -6.0), run("drmad", 1, -8.0), run("reverse", 0, 0.0)]
    (line,) = agreement(runs, compare(runs))
    good, bad = line.split("; not as published: ")
    assert "greedy +2 ± 1 (+3.187e+04)" in good and "drmad" not in good
    assert bad == "drmad -2 ± 1 (+9329) [50 hyper-updates, test rows -0.2 nats each]."
    assert agreement([run | {"data": "digits"} for run in runs], compare(runs)) == []


@pytest.mark.slow
def test_a_study_can_be_stopped_and_spends_what_it_may(tmp_path):
    config = Config(
        data=("synthetic",),
        criteria=("elbo",),
        methods=("random", "greedy"),
        seeds=2,
        scale=0.01,
        out=tmp_path,
        data_dir=None,
        tuning_seeds=0,
    )
    summary = main(config)
    assert len(summary["runs"]) == 2 * 2 * 2
    for run in summary["runs"]:
        spent, allowed = run[run["budget"]], 500
        assert allowed <= spent < allowed + 10 and np.isfinite([run["Q"], run["E"], run["E_0.5"]]).all()
    (tmp_path / "cells" / "synthetic-elbo-greedy-iterations-1.json").unlink()
    again = main(config)
    timeless = lambda runs: [{k: v for k, v in run.items() if k != "seconds"} for run in runs]
    assert timeless(again["runs"]) == timeless(summary["runs"])
    for name in ("summary.json", "table.csv", "table.tex", "report.md", "history.csv"):
        assert (tmp_path / name).stat().st_size > 500
    assert json.loads((tmp_path / "summary.json").read_text())["claims"] == again["claims"]
    with pytest.raises(ValueError, match="methods is empty"):
        Config(methods=())
    with pytest.raises(ValueError, match="below 1"):
        Config(average=1.0)


@pytest.mark.sweep
def test_sweeps_write_their_claims_and_plots(tmp_path):
    small = {"seeds": 2, "scale": 0.01, "tuning_seeds": 0, "groups": ("one", "weights"), "periods": (10,)}
    summary = sweeps.main(sweeps.Config(data="synthetic", out=tmp_path, data_dir=None, **small))
    counts = {(run["sweep"], run["value"]): run["hyperparameters"] for run in summary["runs"]}
    assert counts == {("groups", "one"): 1, ("groups", "weights"): 12, ("periods", 10): 12}
    updates = {run["method"]: run["hyper_updates"] for run in summary["runs"] if run["sweep"] == "periods"}
    assert updates["greedy"] == 10 * updates["drmad"] == 10 * updates["hoag"] == 10 * updates["reverse"]
    assert sum("above_random" in claim for claim in summary["claims"]) == 2
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("groups", "periods"))
