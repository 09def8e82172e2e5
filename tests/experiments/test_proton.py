"""The fit of proton structure: its chi2, its sum rules, its hypergradient, its statistics, its files."""

import csv
import json
from pathlib import Path
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensembles as ens
import hypergrad as hg
from experiments.proton import chi2, data, model, plots, training
from experiments.proton.hyperparameters import Box, Choices, Ranges
from experiments.proton.population import MOST, Population
from experiments.proton.run import Config, Method, main
from experiments.proton.statistics import Judge
from experiments.proton.trials import Trainer, searchers
from hypergrad.testing.tolerances import relative_error

TINY = {"trials": 4, "replicas": 3, "steps": 6, "starts": 2, "horizon": 3, "widths": (3, 2), "least_width": 2}
TINY |= {"most_width": 4, "final_replicas": 3, "final_steps": 8, "chosen": 2, "best": 1.0}


@pytest.fixture(scope="module")
def measured():
    return data.load("proton")


def fit_of(measured, replicas=2, steps=3, own_splits=False, widths=(4, 3), cross=True):
    sizes = training.Sizes(replicas, steps, widths, 0.75, own_splits, 1.0)
    return training.Fit(measured, sizes, 0, cross)


CHOICES = Choices(np.array([4, 3]), 2, False, False, True)


def test_the_file_is_checked(tmp_path):
    path = tmp_path / "proton_dis.npz"
    path.write_bytes(data.FILE.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="SHA-256"):
        data.proton(path, "balanced")


@pytest.mark.slow
def test_measurements(measured):
    assert measured.values.shape == (2054,) and len(measured.sets) == len(set(measured.sets)) == 11
    assert measured.folds.sum(1).tolist() == [447, 337, 415, 478]
    assert not measured.folds[:, measured.set_of_point == measured.sets.index("HERA 318 e+")].any()
    assert np.linalg.eigvalsh(measured.covariance_t0)[0] > 0
    assert 0.5 < np.median(np.diag(measured.covariance_t0) / np.diag(measured.covariance)) < 2


@pytest.mark.slow
@pytest.mark.parametrize("own_splits", [False, True])
def test_reduced_chi2_is_the_full_one(measured, own_splits):
    fit = fit_of(measured, own_splits=own_splits)
    problem, _ = fit.prepare(CHOICES)
    unit = training.as_arrays(fit.box.centre())
    found = np.asarray(eqx.filter_jit(lambda given: given.chi2(fit.start, unit))(problem.train))
    predictions = fit.predictions(fit.start, unit, problem)
    pseudodata = fit._pseudodata(0)
    split = chi2.split_points(measured, ~measured.folds, 0.75, 0, 2 if own_splits else 1)
    for k in range(4):
        for r in range(2):
            used = split.train[k * len(split.train) // 4 + (r if own_splits else 0)]
            assert not (used & measured.folds[k]).any()
            error = (predictions[k, r] - pseudodata[r])[used]
            right = error @ np.linalg.solve(measured.covariance_t0[np.ix_(used, used)], error) / used.sum()
            assert abs(found[2 * k + r] / right - 1) < 1e-9
    assert not (split.train & split.valid).any()
    assert np.array_equal((split.train | split.valid)[0], ~measured.folds[0])
    if own_splits:
        assert (split.train[0] != split.train[1]).any()


@pytest.mark.slow
def test_sum_rules(measured):
    theory = model.ProtonTheory(measured.tables)
    own = model.draw_own(jax.random.key(3), model.shapes(2, 8, (4, 3)), 8)
    moved = model.unmoved(model.shapes(2, 8, (4, 3)), 1.0)
    box = Box(2, 8)
    hparams = box.natural(box.centre())
    log = np.linspace(np.log(1e-9), np.log(1 - 1e-9), 40_001)
    x = np.exp(log)
    f = np.asarray(theory.distributions(moved, own, hparams, CHOICES, jnp.asarray(x)))[: len(x)]
    numbers, momentum = np.trapezoid(f, log, axis=0), np.trapezoid(f * x[:, None], log, axis=0)
    assert abs(momentum[0] + momentum[1] - 1) < 1e-6
    assert np.allclose(numbers[[2, 3, 4]], [3, 1, 3], rtol=1e-6)


@pytest.mark.slow
def test_a_mask_is_a_narrower_network():
    box = Box(2, 0)
    hparams = box.natural({name: value + 0.3 for name, value in box.centre().items()})
    sizes = model.shapes(3, 2, (6, 5))
    own = model.draw_own(jax.random.key(0), sizes, 2)
    draw = lambda size, seed: jax.random.normal(jax.random.key(seed), size)
    moved = model.Layers(
        tuple(draw(size, i) for i, size in enumerate(sizes)), tuple(draw(size[:1], 9) for size in sizes)
    )
    x = draw((7, 3), 20)
    for sigmoid in (False, True):
        choices = Choices(jnp.array([4, 2]), 1, sigmoid, True, False)
        found = eqx.filter_jit(model.network)(moved, own, hparams, choices, x)
        value, true = np.asarray(x), [3, 4, 2, 2]
        for i in range(3):
            out, inside = true[i + 1], true[i]
            scale = np.exp(hparams["log_scale"][i]) * np.sqrt(2 / (out + inside))
            weight = scale * own.uniform[i][:out, :inside] + moved.weights[i][:out, :inside]
            value = value @ np.asarray(weight).T + np.asarray(moved.biases[i][:out])
            if i < 2:
                value = 1 / (1 + np.exp(-value)) if sigmoid else np.tanh(value)
        assert relative_error(found, value) < 1e-12
        decay = model.penalty(moved, own, hparams, choices)
        hidden = jax.tree.map(lambda a: a * 0, moved)
        assert decay > model.penalty(hidden, own, hparams, choices) > 0


@pytest.mark.sweep
def test_hypergradient_of_all_hyperparameters(measured):
    fit = fit_of(measured)
    problem, inner = fit.prepare(Choices(np.array([3, 3]), 3, False, False, True))
    assert len(fit.box) == 26
    unit = {name: jnp.full(np.shape(value), 0.1) for name, value in fit.box.centre().items()}
    unit["log_scale"] = jnp.full(3, -0.5)
    estimator = hg.Reverse(inner)
    estimate, _ = estimator.step(problem, unit, estimator.init(problem, fit.start, unit), jax.random.key(0))
    value = lambda unit: hg.evaluate(inner, problem, fit.start, unit, jax.random.key(0)).value
    assert relative_error(estimate.value, value(unit)) < 1e-12
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(estimate.hypergradient))
    for name, leaf in unit.items():
        for i in np.ndindex(leaf.shape):
            sides = [value({**unit, name: leaf.at[i].add(step)}) for step in (1e-5, -1e-5)]
            slope = float(sides[0] - sides[1]) / 2e-5
            assert abs(slope - float(estimate.hypergradient[name][i])) < 1e-6 * largest + 1e-5 * abs(slope)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(estimate.hypergradient))


@pytest.mark.slow
def test_the_population_has_the_chi2_of_members_trained_one_by_one():
    measured, sigma, key = data.load("diabetes"), 0.3, jax.random.key(5)
    fit = fit_of(measured, steps=4)
    made = Trainer(fit, Judge(measured, fit.held_out), Ranges(fit.box, 2, (4, 3), 4), hg.Reverse, ())
    params = made.ranges.params(fit.box.centre(), CHOICES)
    trained = lambda params: made.judge.chi2(made.estimate(params, False)[1]).ravel()
    _, predictions = made.estimate(params, False)
    found, spent = Population(fit, made.judge, made.ranges, sigma).hypergradient(params, predictions, key)
    halves = made.ranges.halves()
    at = {name: jnp.asarray((params[name] - middle) / half) for name, (middle, half) in halves.items()}
    moved = ens.perturbed_hparams(key, at, sigma, 8)
    inside = {name: middle + half * np.clip(moved[name], -1, 1) for name, (middle, half) in halves.items()}
    losses = [trained(params | {name: float(inside[name][m]) for name in inside})[m] for m in range(8)]
    change = np.clip(np.array(losses) - trained(params), -MOST, MOST)
    assert np.any(np.abs(change) < MOST) and np.any(change)
    error = {name: moved[name] - at[name] for name in moved}
    for name, (_, half) in halves.items():
        slope = np.mean((change[:4] - change[4:]) * error[name][:4]) / (2 * sigma**2)
        assert found[name] * half == pytest.approx(float(slope), rel=1e-6, abs=1e-9)
    assert spent == 4 and len(found) == len(fit.box) + 3  # two widths and the patience


def csv_rows(folder: Path):
    with open(folder / "trials.csv") as file:
        return list(csv.DictReader(file))


def check_files(folder: Path, summary):
    """The statistics again, from the stored predictions, by NumPy alone."""
    with np.load(folder / "replicas.npz") as file:
        stored = {name: file[name] for name in file.files}
    D, C = stored["data"], stored["covariance"]

    def statistics(T, mask):
        T, inverse, n = T[:, mask].astype(float), np.linalg.inv(C[np.ix_(mask, mask)]), mask.sum()
        form = lambda d, matrix: np.einsum("...i,ij,...j->...", d, matrix, d) / n
        replica, mean = form(T - D[mask], inverse), T.mean(0)
        spread = C[np.ix_(mask, mask)] + np.cov(T, rowvar=False)
        _, logdet = np.linalg.slogdet(spread / np.outer(D[mask], D[mask]))
        full = form(mean - D[mask], np.linalg.inv(spread))
        return {
            "chi2_mean_replica": replica.mean(),
            "chi2_of_mean": form(mean - D[mask], inverse),
            "phi2": replica.mean() - form(mean - D[mask], inverse),
            "chi2_full_covariance": full,
            "negative_log_probability": (np.log(2 * np.pi) + logdet / n + full) / 2,
        }

    def same(found, right):
        for name, value in right.items():
            assert abs(found[name] - value) < 1e-10 * max(1, abs(value)), name

    final, kept = summary["final"], stored["predictions"][stored["kept"]]
    assert final["num_kept"] == len(kept)
    same(final, statistics(kept, np.ones(len(D), bool)))
    assert abs(final["phi"] ** 2 - final["phi2"]) < 1e-12
    for i, name in enumerate(stored["sets"]):
        same(final["sets"][name], statistics(kept, stored["set_of_point"] == i))
    best = summary["best_trial"]
    folds = [statistics(T, mask) for T, mask in zip(stored["fold_predictions"], stored["folds"], strict=True)]
    for k, right in enumerate(folds):
        same({name: values[k] for name, values in best["folds"].items()}, right)
    means = [fold["chi2_mean_replica"] for fold in folds]
    same(best, {"L1": np.mean(means), "L2": max(means), "L3": 1 / np.mean([fold["phi2"] for fold in folds])})
    searched = [float(row["L1"]) for row in csv_rows(folder) if row["L1"] and row["method"] != "plain"]
    assert min(searched) == best["L1"]
    assert json.loads((folder / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_whole_run_on_the_proton(tmp_path, capsys):
    with jax.enable_x64(False):
        config = Config(out=tmp_path, methods=("plain", "tpe"), **TINY)
        summary = main(config)
        check_files(tmp_path, summary)
    plain, first = csv_rows(tmp_path)[:2]  # the control: one long trial where searches begin, which is not selected
    assert (plain["method"], float(plain["gradients_so_far"])) == ("plain", config.trials * config.steps)
    hparams = [name for name in plain if name.startswith(("log_", "width", "sigmoid"))]
    assert len(hparams) > 10 and all(plain[name] == first[name] for name in hparams)
    assert float(plain["L1"]) != float(first["L1"])
    assert all(0 not in one["chosen"] and not one["in_band"][0] for one in summary["selection"].values())
    plots = {"search.png", "trials.png", "data_theory.png", "pdfs.png", "chi2_per_set.png"}
    assert plots == {path.name for path in tmp_path.glob("*.png")}
    assert "final ensemble" in capsys.readouterr().out


@pytest.mark.sweep
def test_whole_run_on_other_data_and_resume(tmp_path):
    with jax.enable_x64(False):
        config = Config(data="diabetes", out=tmp_path, **TINY)
        summary = main(config)
        check_files(tmp_path, summary)
        stored = sorted((tmp_path / "trials").glob("*.jsonl"))
        lines, before = [path.read_text().splitlines() for path in stored], csv_rows(tmp_path)
        assert [path.stem for path in stored] == ["gradient-0", "plain-0", "population-0", "random-0", "tpe-0"]
        for path, text in zip(stored, lines, strict=True):
            spent = [json.loads(line)["result"]["gradients"] for line in text if '"tell"' in line]
            assert sum(spent[:-1]) <= config.trials * config.steps and len(spent) > 2 * (path.stem != "plain-0")
            path.write_text("\n".join(text[:5]) + "\n")  # as if stopped after two trials
        for cell in (tmp_path / "cells").iterdir():
            cell.unlink()
        again = main(config)
        without_time = lambda rows: [row | {"seconds": 0} for row in rows]
        assert [path.read_text().count("tell") for path in stored] == ["\n".join(text).count("tell") for text in lines]
        assert without_time(csv_rows(tmp_path)) == without_time(before)
        assert again["final"] == summary["final"]
        with pytest.raises(SystemExit, match="another run"):
            main(Config(data="diabetes", out=tmp_path, **TINY | {"trials": 5}))


def test_a_point_of_the_space_is_what_training_takes():
    ranges = Ranges(Box(2, 8), 2, (4, 4), 50)
    choices = Choices(np.array([4, 3]), 9, False, True, True)
    unit = {name: np.full(np.shape(low), 0.25) for name, low in ranges.box.low.items()}
    params = ranges.space().checked(ranges.params(unit, choices))
    assert {name: value.tolist() for name, value in ranges.unit(params).items()} == {
        name: value.tolist() for name, value in unit.items()
    }
    assert str(ranges.choices(params)) == str(choices)
    named = ranges.named(params)
    assert named["log_scale_2"] == pytest.approx(0.25 * np.log(5)) and named["patience"] == 9 and named["width_1"] == 3


def test_all_searches_begin_at_the_centre():
    ranges = Ranges(Box(1, 0), 2, (4,), 50)
    first = Choices(np.array([3]), 10, False, False, True)
    for searcher in searchers(ranges, first, starts=3, rate=0.1, seed=0).values():
        state, trial = searcher.ask(searcher.init(ranges.space(), jax.random.key(0)))
        assert trial.params == ranges.params(ranges.box.centre(), first)
        state, _ = searcher.ask(state)


def test_every_search_has_a_name_in_words():
    assert set(plots.WORDS) == set(get_args(Method))


def test_bad_options_are_named():
    for option, value in (("trials", 0), ("best", 1.5), ("train_fraction", 1.0), ("widths", (50,)), ("replicas", 1)):
        with pytest.raises(ValueError, match=option):
            Config(**{option: value})
    with pytest.raises(ValueError, match="methods must name a search beside plain"):
        Config(methods=("plain",))
    with pytest.raises(ValueError, match="quick and full"):
        Config(quick=True, full=True)
