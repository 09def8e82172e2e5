"""Images and text: convolution, augmentation and source against closed forms, and what a run writes."""

import csv
import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.convolution import Convolution
from experiments.common.data import Rows
from experiments.publish import command
from experiments.vision import run as vision
from experiments.vision.images import augment, draw, warp
from experiments.vision.methods import equal_moves
from experiments.vision.model import cross_entropy, weight_by_loss
from experiments.vision.report import COLUMNS, in_words, report
from experiments.vision.run import QUICK, Config, main
from experiments.vision.text import CONCENTRATION, Lines, Source, Transformer, by_counts

from tests.helpers import patterns

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_a_convolution(stride):
    layer = Convolution(2, 3, jax.random.key(0), stride)
    x = jax.random.normal(jax.random.key(1), (7, 8, 2))
    form, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    kernel = layer.weight.reshape(3, 3, 2, 3)
    right = jax.lax.conv_general_dilated(x[None], kernel, strides, ((1, 1), (1, 1)), dimension_numbers=form)[0]
    np.testing.assert_allclose(layer(x), right + layer.bias, atol=1e-5)


def test_images_move_and_grow_about_their_centre():
    warped = jax.jit(warp)
    x = jax.random.normal(jax.random.key(0), (6, 6))
    np.testing.assert_allclose(warped(x, jnp.zeros(2), jnp.float32(1)), x, atol=1e-6)
    np.testing.assert_allclose(warped(x, jnp.array([2.0, -1.0]), jnp.float32(1))[2:, :-1], x[:-2, 1:], atol=1e-6)
    halfway = warped(x, jnp.array([0.5, 0.0]), jnp.float32(1))
    np.testing.assert_allclose(halfway[1:], (x[1:] + x[:-1]) / 2, atol=1e-6)
    ramp = jnp.arange(6.0)[:, None] + jnp.zeros(6)
    zoomed = warped(ramp, jnp.zeros(2), jnp.float32(2))
    np.testing.assert_allclose(zoomed, 2.5 + (ramp - 2.5) / 2, atol=1e-6)
    slope = jax.jit(jax.grad(lambda shift: augment(x[None], shift, 0.0, jax.random.key(1))[0, 3, 3]))(0.3)
    assert slope != 0


def test_a_share_of_the_labels_is_wrong_and_pixels_are_means():
    sets = Rows(*patterns(100, 1)), Rows(*patterns(20, 2))
    found = draw(sets, 0, (60, 30, 14), 0.4)
    assert found.wrong.sum() == 24 and len(found.test.y) == 20
    assert found.train.x.shape == (60, 14, 14) and list(found.train.row) == list(range(60))
    clean = draw(sets, 0, (60, 30, 14), 0.0)
    np.testing.assert_array_equal(found.wrong, found.train.y != clean.train.y)
    np.testing.assert_allclose(np.diff(clean.test.x[:, 0, 0]) * 1.0, np.diff(found.test.x[:, 0, 0]))
    with pytest.raises(ValueError, match=r"rows \+ valid is 101"):
        draw(sets, 0, (60, 41, 14), 0.4)
    with pytest.raises(ValueError, match="side must divide 28"):
        draw(sets, 0, (60, 30, 13), 0.4)


def test_smoothing_mixes_the_label_with_all_classes():
    logits, y = jax.random.normal(jax.random.key(0), (5, 4)), jnp.array([0, 1, 2, 3, 0])
    mixed = 0.7 * jax.nn.one_hot(y, 4) + 0.3 / 4
    right = -jnp.sum(mixed * jax.nn.log_softmax(logits), -1)
    np.testing.assert_allclose(cross_entropy(logits, y, 0.3), right, rtol=1e-5)
    lines = cross_entropy(jnp.stack([logits, logits]), jnp.stack([y, y]))
    np.testing.assert_allclose(lines, jnp.full(2, cross_entropy(logits, y)[1:].mean()), rtol=1e-5)


def test_no_prediction_beats_the_entropy_of_the_source():
    random = np.random.default_rng(0)
    source = Source.draw(3, random)
    np.testing.assert_allclose(np.einsum("ab,abc->bc", source.stationary, source.next_letter), source.stationary)
    train, test = source.write(200, 50, random), source.write(2000, 50, random)
    assert test.x.shape == (2000, 50) and np.array_equal(test.x[:, 1:], test.y[:, :-1])
    np.testing.assert_array_equal(test.take(np.array([7, 3])).y, test.y[[7, 3]])
    assert source.cross_entropy(test) == pytest.approx(source.entropy, rel=0.01)
    assert source.cross_entropy(test) < by_counts(train, test) < source.cross_entropy(test) + 0.01
    uniform = Source(np.full((2, 2, 2), 0.5))
    assert uniform.entropy == pytest.approx(np.log(2)) and uniform.stationary == pytest.approx(0.25)


def test_counts_are_the_posterior_mean():
    letters = np.array([[0, 1, 1, 0, 1]], np.int32)
    line = Lines(letters[:, :-1], letters[:, 1:])  # pairs 01 -> 1, 11 -> 0, 10 -> 1
    seen, prior = 1 + CONCENTRATION, 1 + 2 * CONCENTRATION
    assert by_counts(line, line) == pytest.approx(-np.log(seen / prior))


@pytest.mark.slow
def test_the_transformer_does_not_look_ahead():
    model, state = eqx.nn.make_with_state(Transformer)(3, 6, 8, 1, jax.random.key(0))
    x = jnp.array([0, 1, 2, 0, 1, 2])
    read = eqx.filter_jit(model)
    before, after = (np.asarray(read(text, state)[0]) for text in (x, x.at[3].set(1)))
    np.testing.assert_allclose(before[:3], after[:3], atol=1e-6)
    assert np.abs(before[3:] - after[3:]).min(-1).max() > 1e-4


def test_the_words_tell_the_distance_from_the_oracle_and_the_source():
    run = lambda method, seed, error: {"method": method, "seed": seed, "test_error": error}
    runs = [run("oracle", 0, 2.0), run("oracle", 1, 3.0), run("plain", 0, 9.0), run("plain", 1, 8.5)]
    assert in_words(runs) == ["plain: test error above the oracle by 7.00, 5.50 points, seed by seed."]
    text = [{"method": "plain", "seed": 0, "test_loss": 1.5, "test_error": 1.0, "source": 1.25, "counts": 1.3}]
    assert in_words(text) == ["plain: test loss above that of the source by 0.2500 nats, counts by 0.0500."]


def test_a_report_holds_methods_with_and_without_a_threshold(tmp_path):
    line = {"seed": 0, "method": "plain", "epochs": 1.0, "valid_loss": 1.0, "rate": 0.1}
    by_loss = {"method": "weights by loss", "threshold": 2.0}
    run = line | dict.fromkeys(COLUMNS, 1.0)
    cells = [{"runs": [run], "history": [line]}, {"runs": [run | by_loss], "history": [line | by_loss]}]
    report(Config(out=tmp_path, seeds=1), cells)
    with open(tmp_path / "history.csv", newline="") as file:
        assert [found["threshold"] for found in csv.DictReader(file)] == ["", "2.0"]


def test_moves_of_examples_keep_their_proportions_and_size():
    optimiser, gradient = equal_moves(1.5), {"example": jnp.array([3.0, -4.0])}
    for factor in (1.0, 100.0):
        scaled = jax.tree.map(lambda leaf, factor=factor: factor * leaf, gradient)
        move, _ = optimiser.update(scaled, optimiser.init(gradient))
        np.testing.assert_allclose(move["example"], -1.5 * gradient["example"] / np.sqrt(12.5), rtol=1e-6)


def test_weights_fall_with_the_loss_and_are_held_with_mean_one():
    weighting, rows = {"threshold": jnp.float32(2), "log_slope": jnp.log(3.0)}, jnp.array([0.0, 2.0, 4.0])
    value, slope = jax.value_and_grad(lambda rows: jnp.sum(weight_by_loss(weighting, rows) * rows))(rows)
    share = 1 / (1 + np.exp(-3 * (2 - np.asarray(rows))))
    np.testing.assert_allclose(slope, share / share.mean(), rtol=1e-5)
    assert float(value) == pytest.approx(share @ np.asarray(rows) / share.mean(), rel=1e-5)
    far = weight_by_loss(weighting, rows + 1000)
    np.testing.assert_allclose(far, [3, 0, 0], atol=0.01)


@pytest.mark.slow
def test_a_quick_run_writes_everything_and_goes_on(tmp_path, monkeypatch, caplog):
    images = Rows(*patterns(300, 1)), Rows(*patterns(50, 2))
    monkeypatch.setattr(vision, "image_sets", lambda name, folder: images)
    small = {"methods": ("plain", "example weights"), "epochs": 4, "side": 7, "blocks": 0}
    small |= {"jobs": 1}  # other threads do not see the precision that `as_users_run_it` sets
    config = Config(out=tmp_path, quick=True, **(QUICK | small))
    summary = main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "vision.png").stat().st_size > 5000
    runs = {run["method"]: run for run in summary["runs"]}
    assert set(runs) == {"plain", "example weights"}
    assert all(0 < run["epochs"] <= config.epochs + 3 for run in summary["runs"])
    assert runs["plain"]["updates"] == 16 and runs["example weights"]["updates"] == 8
    assert 0 <= runs["example weights"]["auc"] <= 1 and "auc" not in runs["plain"]
    assert main(config)["runs"] == summary["runs"]
    with jax.log_compiles():
        main(dataclasses.replace(config, out=tmp_path / "other", first_seed=1))
        assert "XLA compilation" not in caplog.text, "seeds share compiled programs"
        jax.jit(lambda x: x + 1)(1.0)
        assert "XLA compilation" in caplog.text


def test_a_published_command_names_the_methods_that_were_chosen():
    options = {"task": "text", "every": False, "methods": ["plain", "by loss"], "seeds": 2}
    line = "python -m experiments.vision --task text"
    assert command("vision_by_loss", options) == f"{line} --methods plain 'by loss' --seeds 2"
    assert command("vision_text", options | {"every": True, "methods": []}) == f"{line} --every --seeds 2"
    assert command("short_horizon", {"seeds": 5, "noise": 2.0}) == "python -m experiments.short_horizon --noise 2.0"


def test_methods_that_do_not_suit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="methods must be among oracle"):
        Config(methods=("magic",))
    with pytest.raises(ValueError, match="methods oracle do not suit the task clean"):
        Config(task="clean", methods=("oracle", "plain"))
    with pytest.raises(ValueError, match="every and methods exclude each other"):
        Config(methods=("plain",), every=True)
    more = {"validation rows", "weights and all", "by loss and all"}
    assert set(Config(every=True).chosen) - set(Config().chosen) == more
    with pytest.raises(ValueError, match="batch must be at most the 10 rows"):
        Config(rows=10)
