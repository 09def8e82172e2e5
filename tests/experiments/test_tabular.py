"""Tabular data: the sets as they are read, what a run writes, and the words about it."""

import dataclasses
import gzip
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.report import as_json
from experiments.publish import command
from experiments.tabular.criteria import bounds_of, evidence_bound, folds, training_loss
from experiments.tabular.data import available, read
from experiments.tabular.methods import METHODS
from experiments.tabular.model import STARTS, hparams_of, log_decay_of, losses_of, network, on_test
from experiments.tabular.report import in_hindsight, in_words, judged, verdicts
from experiments.tabular.run import QUICK, Config, main
from experiments.tabular.task import Task

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture
def folder(tmp_path):
    """A folder with one regression of 60 rows, whose target is the second of three columns, and one split."""
    rows = np.random.default_rng(0).normal(3.0, 2.0, (60, 3))
    place = tmp_path / "uci" / "made-up"
    place.mkdir(parents=True)
    write(place, rows)
    (place / "index_features.txt").write_text("0\n2\n")
    (place / "index_target.txt").write_text("1\n")
    np.savez(place / "splits.npz", train_0=np.arange(50), test_0=np.arange(50, 60))
    return tmp_path, rows


def test_a_folder_is_read_and_scaled_on_its_training_rows(folder):
    root, rows = folder
    assert available(root)[0] == "made-up" and "diabetes" in available(None)
    table = read("made-up", root, 0, 0.2)
    train, valid, test = table.splits
    assert (len(train.y), len(valid.y), len(test.y), table.classes) == (40, 10, 10, 0)
    np.testing.assert_allclose(train.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.x.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(np.diff(test.y), np.diff(rows[50:, 1]) / table.unit, rtol=1e-4, atol=1e-5)
    with pytest.raises(FileNotFoundError, match="no split 1"):
        read("made-up", root, 1, 0.2)
    with pytest.raises(FileNotFoundError, match="no data set unknown .* made-up"):
        read("unknown", root, 0, 0.2)


FAULTS = {
    "a word": (lambda place, rows: write(place, rows, "1 2 three\n"), "data.txt.gz must hold numbers between blanks"),
    "a NaN": (lambda place, rows: write(place, rows, "1 nan 3\n"), "data.txt.gz holds 1 values that are NaN"),
    "no such feature": (
        lambda place, rows: (place / "index_features.txt").write_text("0 3"),
        "features.*0 to 3.* to 2",
    ),
    "no such target": (lambda place, rows: (place / "index_target.txt").write_text("-1"), "target.txt holds -1 to -1"),
    "no features": (
        lambda place, rows: (place / "index_features.txt").write_text(""),
        "features.txt must name columns other than the target, 1, got ",
    ),
    "the target as a feature": (
        lambda place, rows: (place / "index_features.txt").write_text("0 1"),
        "features.txt must name columns other than the target, 1, got ",
    ),
    "two targets": (lambda place, rows: (place / "index_target.txt").write_text("1 2"), "must name one column, got 2"),
    "no such row": (
        lambda place, rows: np.savez(place / "splits.npz", train_0=np.arange(50), test_0=[60]),
        "splits.npz holds 0 to 60, but .* has 0 to 59",
    ),
    "a row that trains and tests": (
        lambda place, rows: np.savez(place / "splits.npz", train_0=np.arange(50), test_0=[7]),
        "has a row twice in split 0",
    ),
    "no row to test": (lambda place, rows: np.savez(place / "splits.npz", train_0=[0, 1, 2], test_0=[]), "1 to test"),
    "text for an archive": (lambda place, rows: (place / "splits.npz").write_text("x"), "npz must hold arrays of num"),
    "out of range": (lambda place, rows: write(place, rows * [1, 1e300, 1]), "above 1e.100"),
    "a constant target": (lambda place, rows: write(place, rows * [1, 0, 1] + 0.1), "target is 0.1 in all 40 training"),
}


def write(place, rows, last=""):
    with gzip.open(place / "data.txt.gz", "wt") as file:
        np.savetxt(file, rows)
        file.write(last)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_used_says_why(fault, folder):
    root, rows = folder
    change, words = FAULTS[fault]
    change(root / "uci" / "made-up", rows)
    with pytest.raises(ValueError, match=words):
        read("made-up", root, 0, 0.2)


def test_missing_splits_are_refused_before_anything_runs(folder, tmp_path):
    root, _ = folder
    with pytest.raises(FileNotFoundError, match="made-up has no split 1: choose others with --seeds"):
        main(Config(out=tmp_path / "out", data_dir=root, sets=("diabetes", "made-up"), seeds=2))
    assert not (tmp_path / "out").exists()


def test_a_constant_feature_stays_out(folder):
    """The mean of a constant such as 0.1 is not it to the last bit."""
    root, rows = folder
    write(root / "uci" / "made-up", rows * [0, 1, 1] + [0.1, 0, 0])
    for part in read("made-up", root, 0, 0.2).splits:
        np.testing.assert_allclose(part.x[:, 0], 0, atol=1e-12)


@pytest.mark.parametrize("name", ["diabetes", "wine"])
def test_a_constant_has_the_error_of_a_constant(name):
    table = read(name, None, 0, 0.2)
    y = table.splits.test.y
    found = on_test(lambda x: jax.nn.one_hot(1, 3) * 0 if table.classes else 0 * x[0], table)
    if table.classes:
        assert found["test_error"] == pytest.approx(np.mean(y != 0))
        assert found["test_nll"] == pytest.approx(np.log(3), rel=1e-5)
    else:
        assert found["test_error"] == pytest.approx(table.unit * np.sqrt(np.mean(y**2)), rel=1e-5)


@pytest.mark.slow
def test_a_quick_run_writes_everything_and_goes_on(tmp_path):
    config = Config(out=tmp_path, quick=True, **(QUICK | {"sets": ("diabetes",), "starts": ("rate x 30",)}))
    summary = main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "test_error_against_cost.png").stat().st_size > 5000
    assert {run["method"] for run in summary["runs"]} == set(QUICK["methods"])
    assert all(0 < run["gradients"] <= 400 + 121 for run in summary["runs"])
    assert main(config)["runs"] == summary["runs"]
    assert "hypergrad" not in (tmp_path / "table.md").read_text()
    assert "tune is ahead of plain" in (tmp_path / "report.md").read_text()


def test_the_words_count_what_the_numbers_say():
    """Ahead where the gain is beyond its standard error, level within it, behind else."""
    run = lambda method, start, seed, error: {
        "set": "s", "start": start, "method": method, "seed": seed, "test_error": error,
    }  # fmt: skip
    errors = {"bad": (3.0, 3.5), "good": (1.0, 1.2), "odd": (0.5, 0.6)}
    plain = [run("plain", start, seed, value) for start, pair in errors.items() for seed, value in enumerate(pair)]
    ours = [run("tune", start, seed, 1.0 + 0.2 * seed) for start in errors for seed in (0, 1)]
    (sentence,) = in_words(verdicts(plain + ours))
    assert sentence == (
        "tune is ahead of plain in 1, level with plain in 1, behind plain in 1 of 3 cases. Behind on: s (odd)."
    )


@pytest.mark.slow
def test_all_forms_of_decays_begin_with_the_same_penalty():
    """A step of the layer's own decay moves those of all its weights, as it does where the layer has one alone."""
    table = read("wine", None, 0, 0.2)
    model = network(jax.random.key(0), table, 4)
    loss = losses_of(table.classes, 8).inner
    forms = {name: hparams_of(model, STARTS["decay e^-2"], name) for name in ("layer", "weight", "both")}
    value = lambda hparams: float(loss(model, hparams, table.splits.train, jax.random.key(1)))
    assert value(forms["weight"]) == pytest.approx(value(forms["layer"]), rel=1e-6)
    assert value(forms["both"]) == pytest.approx(value(forms["layer"]), rel=1e-6)
    of_layer, factors = forms["both"]["log_decay"][0]
    assert factors.shape == model.layers[0].weight.shape
    moved = log_decay_of((of_layer + 1, factors)) - log_decay_of((of_layer, factors))
    np.testing.assert_allclose(moved, np.ones(factors.shape), rtol=1e-6)


@pytest.fixture
def task_of():
    """A function from the name of a data set to a small task, from a rate that is too small."""

    def make(name, budget=600):
        table = read(name, None, 0, 0.2)
        model = network(jax.random.key(0), table, 4)
        return Task(table, losses_of(table.classes, 16), model, STARTS["rate / 30"], budget, 16, jax.random.key(1))

    return make


@pytest.mark.variants(slow=["wine", "diabetes"])
@pytest.mark.parametrize("name", ["diabetes", "wine"])
def test_a_narrow_bound_weighs_fit_and_penalty_as_the_loss_does(name, task_of):
    task = task_of(name)
    posed, train = evidence_bound(task), task.table.splits.train
    key, weights = jax.random.key(2), lambda model: [layer.weight for layer in model.layers]
    other = eqx.tree_at(weights, task.model, [1.5 * weight for weight in weights(task.model)])
    bound = bounds_of(task.table.classes, task.batch).outer
    narrow = eqx.tree_at(lambda q: q.log_std, posed.params, jax.tree.map(lambda s: 0 * s - 12, posed.params.log_std))
    fit = lambda model: task.losses.outer(model, None, train, key)
    penalty = lambda model: sum(jnp.sum(jnp.exp(-2.0) * weight**2) / 2 for weight in weights(model))
    hparams = posed.hparams | {"log_decay": [jnp.float32(-2.0)] * len(task.model.layers)}
    of = lambda model: float(bound(eqx.tree_at(lambda q: q.mean, narrow, model), hparams, train, key))
    wanted = float(fit(other) + penalty(other) - fit(task.model) - penalty(task.model))
    assert of(other) - of(task.model) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
def test_folds_of_the_training_rows_predict_together(task_of):
    task = task_of("diabetes")
    posed, x = folds(task), task.table.splits.valid.x[0]
    assert float(posed.predictor(posed.params)(x)) == pytest.approx(float(task.model(x)), rel=1e-5)
    assert float(posed.holdout(posed.params)) == pytest.approx(task.valid_loss(task.model), rel=1e-5)
    held = np.asarray(posed.problem.valid.y)
    assert held.shape[0] == 4 and set(held.ravel()) <= set(task.table.splits.train.y)


@pytest.mark.slow
def test_the_training_loss_moves_rate_and_momentum_alone(task_of):
    task = task_of("diabetes")
    np.testing.assert_array_equal(training_loss(task).problem.valid.y, task.table.splits.train.y)
    _, hparams, gradients = METHODS["online, training loss"](task)
    np.testing.assert_array_equal(hparams["log_decay"], task.hparams()["log_decay"])
    assert float(hparams["log_rate"]) != float(task.hparams()["log_rate"]) and 0 < gradients <= 600 + 121


@pytest.mark.slow
@pytest.mark.parametrize("method", ["online, four folds", "online, evidence bound"])
@pytest.mark.parametrize("name", ["diabetes", "wine"])
def test_a_criterion_on_training_rows_learns(name, method, task_of):
    task = task_of(name, 4_000)
    params, _, gradients = METHODS[method](task)
    assert task.valid_loss(params) < task.valid_loss(task.model) and 0 < gradients <= 4_000 + 4 * 121


def test_the_last_method_is_judged_where_tune_does_not_run():
    run = lambda method, error: {"set": "s", "start": "good", "method": method, "seed": 0, "test_error": error}
    runs = [run("plain", 1.0), run("per weight", 2.0), run("per weight, guarded", 1.5)]
    ours = judged([one["method"] for one in runs])
    assert [(line["rival"], line["ahead"], line["behind"]) for line in verdicts(runs, ours)] == [
        ("plain", 0, 1),
        ("per weight", 1, 0),
    ]
    assert in_words(verdicts(runs, ours), ours)[0].startswith("per weight, guarded is ahead of plain in 0")
    assert judged(["tune", "plain"]) == "tune"


def test_a_published_command_names_the_options_that_are_not_the_default():
    config = as_json(dataclasses.replace(Config(), grid=True, sets=("wine", "digits"), methods=("tpe, 10 % trials",)))
    assert command("tabular_full", config) == (
        "python -m experiments.tabular --sets wine digits --methods 'tpe, 10 % trials' --grid"
    )


def test_the_yardstick_is_the_setting_that_is_best_on_average():
    """Not the best of each split."""
    errors = {0.1: (1.0, 4.0), 0.2: (2.0, 2.5), 0.3: (3.0, 2.0)}
    fixed = [
        {"set": "s", "decay": -9.0, "rate": rate, "b1": 0.9, "seed": seed, "test_error": value}
        for rate, pair in errors.items()
        for seed, value in enumerate(pair)
    ]
    found = in_hindsight(fixed, ["good", "bad"])
    assert [(run["start"], run["seed"], run["test_error"]) for run in found] == [
        *(("good", 0, 2.0), ("bad", 0, 2.0)),
        *(("good", 1, 2.5), ("bad", 1, 2.5)),
    ]


def test_calibration_tells_right_from_wrong_confidence():
    table = read("wine", None, 0, 0.2)
    y = table.splits.test.y
    share = np.mean(y == 1)
    sure = on_test(lambda x: 50.0 * jax.nn.one_hot(1, 3) + 0 * x[0], table)
    assert sure["calibration_error"] == pytest.approx(1 - share, abs=1e-6)
    honest = on_test(lambda x: jax.numpy.log(jax.numpy.array([1 - share, share, 1e-9])) + 0 * x[0], table)
    assert honest["calibration_error"] == pytest.approx(
        abs(max(share, 1 - share) - np.mean(y == (share > 0.5))), abs=1e-4
    )


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="methods must be among plain"):
        Config(methods=("plain", "magic"))
    with pytest.raises(FileNotFoundError, match="no data set nowhere"):
        main(dataclasses.replace(Config(out=tmp_path, data_dir=None), sets=("nowhere",)))
