"""Subnetworks and the two-step search: the data, what they write, and that they go on where they stopped."""

import csv
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.aerosol import rebuild
from experiments.aerosol.arg2000 import Modes, activated
from experiments.aerosol.data import PARCEL, four_modes, parcel
from experiments.subnetworks import run as subnetworks
from experiments.subnetworks.tables import efficiency
from experiments.subnetworks.tasks import halves, moved
from experiments.two_step import run as two_step

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_the_scheme_on_which_data_are_made():
    one = lambda number, kappa=0.5: Modes(*np.array([[[number]], [[5e-8]], [[1.8]], [[kappa]]]))
    air = (np.array([0.3]), np.array([280.0]), np.array([9e4]))
    fractions = [activated(*air, one(number)).item() for number in (1e6, 1e8, 1e10)]
    assert 1 > fractions[0] > fractions[1] > fractions[2] > 0  # more particles, less water for each
    assert activated(*air, one(1e8, 1.0)) > activated(*air, one(1e8, 0.1))
    two = Modes(*np.array([[[1e8, 1e-4]], [[5e-8, 9e-8]], [[1.8, 1.5]], [[0.5, 0.9]]]))  # hardly any of the second
    np.testing.assert_allclose(activated(*air, two)[0, 0], fractions[1], rtol=1e-9)
    np.testing.assert_allclose(activated(*air, Modes(*(part[:, ::-1] for part in two))), activated(*air, two)[:, ::-1])


def test_data_sets():
    small, large = four_modes(100, 50, 60), four_modes(300, 50, 60)
    assert np.array_equal(small.test.x, large.test.x) and np.array_equal(small.train.y, large.train.y[:100])
    for part in large:
        assert part.x.shape[1:] == (15,) and np.abs(part.x).max() <= 1 and 0 <= part.y.min() <= part.y.max() <= 1
    splits, scheme = parcel()
    assert [part.x.shape for part in splits] == [(18_000, 8), (3000, 8), (3000, 8)]
    np.testing.assert_allclose(splits.train.x.mean(0), 0, atol=1e-3)
    assert 4e-3 < scheme < 6e-3  # the scheme is no match for the parcel model


def test_rebuilt_rows_are_laid_out_as_those_that_ship(tmp_path):
    with np.load(PARCEL) as file:
        columns = *file["outputs"][:50, :2].T, file["t_smax"][:50], file["status"][:50], *file["outputs"][:50, 2:].T
        np.save(tmp_path / "000.npy", np.stack(columns, 1))
        made, names, split = rebuild.packed([tmp_path / "000.npy"]), file.files, file["split"]
    assert list(made) == names and all(line["largest"] == "0.0e+00" for line in rebuild.compare(made))
    made["outputs"][7, 1] += 0.5
    assert [line[""] for line in rebuild.compare(made) if line["largest"] == "5.0e-01"] == ["actfrac_parcel"]
    np.testing.assert_array_equal(rebuild.packed([tmp_path / "000.npy"] * 480)["split"], split)


@pytest.mark.slow
def test_two_step_says_what_its_trials_say(tmp_path, capsys):
    config = two_step.Config(
        num_train=600, fractions=(0.2, 1.0), num_trials=6, top=2, seeds=1, steps=25, batch=64, max_depth=2, max_width=8,
        shapes=0, growth=(900,), growth_trials=(6, 60), out=tmp_path,
    )  # fmt: skip
    summary = two_step.main(config)
    with open(tmp_path / "trials.csv") as file:
        trials = list(csv.DictReader(file))
    values = {f: np.array([float(t["value"]) for t in trials if float(t["fraction"]) == f]) for f in (0.2, 1.0)}
    units = {f: [t["units"] for t in trials if float(t["fraction"]) == f] for f in (0.2, 1.0)}
    assert units[0.2] == units[1.0] and len(set(units[1.0])) > 3
    (run,) = summary["runs"]
    assert run["spearman"] == pytest.approx(spearmanr(values[0.2], values[1.0]).statistic)
    chosen = np.argsort(values[0.2])[:2]
    assert run["excess"] == pytest.approx(values[1.0][chosen].min() / values[1.0].min() - 1)
    assert list(np.argsort(values[0.2])).index(values[1.0].argmin()) + 1 == run["place_of_best"]
    for name in ("ranks", "quality", "front", "growth"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    for line, limit in zip(summary["growth"], (3, 30), strict=True):
        every = line["trials"] * line["seconds_per_trial"]
        steps = line["trials"] * line["seconds_per_first_trial"] + 2 * line["seconds_per_trial"]
        assert line["speed_up"] == pytest.approx(every / steps) and line["speed_up"] < limit and line["rows"] == 900
    journals = {path: path.read_bytes() for path in tmp_path.glob("trials/**/*.jsonl")}
    again = two_step.main(config)
    assert again["runs"] == summary["runs"] and journals == {path: path.read_bytes() for path in journals}
    assert len(journals) == 2 + 1 + 2  # two steps; all data; the first step and the rows of growth
    for cell in (tmp_path / "cells").iterdir():
        cell.unlink()
    assert two_step.main(config)["runs"] == summary["runs"]  # nothing is trained again


def test_moved_digits():
    task = halves(0, 20, 10, 4, images=True)
    rows = moved(task.with_validation_rows(), 0).train
    assert rows.x.shape == (7 * 30, 68) and rows.y.tolist() == 7 * [*task.train.y, *task.valid.y]
    image = lambda x: np.concatenate(np.split(x[:, :64].reshape(-1, 16, 4), 2, 1), 2)
    plain, copies = image(task.train.x), [image(part)[:20] for part in np.split(rows.x, 7)]
    np.testing.assert_array_equal(copies[0], plain)
    for number, axis in ((3, 1), (5, 2)):  # half a pixel to either side
        inner = np.take(plain, range(2, 6), axis)
        beside = np.take(plain, range(1, 5), axis) + np.take(plain, range(3, 7), axis)
        mean = np.take(copies[number] + copies[number + 1], range(2, 6), axis) / 2
        np.testing.assert_allclose(mean, (2 * inner + beside) / 4, atol=1e-6)
    assert len(np.unique(rows.x[:, 64])) == 210


def test_efficiency_is_the_ratio_of_trials_needed():
    base = [[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 2.0], [4.0, 4.0, 4.0, 3.0]]  # median of the last: 2, at trial 3
    assert efficiency(base, base) == pytest.approx(1.0)
    assert efficiency(base, [[2.0] * 4, [1.0] * 4, [9.0] * 4]) == pytest.approx(3.0)
    assert efficiency(base, [[5.0] * 4] * 3) is None


@pytest.mark.slow
def test_subnetworks_writes_and_goes_on(tmp_path, capsys):
    config = subnetworks.Config(
        parts=("synthetic", "inside", "digits"), bases=("random",), branches=("dense",),
        strategies=("base", "adaptive"), seeds=2, network_seeds=1, random_trials=30, digits_trials=12,
        digits_steps=20, digits_final_steps=20, inside_steps=40, out=tmp_path,
    )  # fmt: skip
    summary = subnetworks.main(config)
    with open(tmp_path / "trials.csv") as file:
        lines = list(csv.DictReader(file))
    for row in summary["table"]:
        group = [line for line in lines if all(line[k] == row[k] for k in ("part", "task", "base", "strategy"))]
        last = max(int(line["trial"]) for line in group)
        finals = [float(line["best"]) for line in group if int(line["trial"]) == last]
        assert len(finals) == row["seeds"] and float(row["final"]) == pytest.approx(np.median(finals), rel=1e-3)
    inside = {run["strategy"]: run for run in summary["runs"] if run["part"] == "inside"}
    assert set(inside["inside"]["hypergradient"]) == {"left", "right", "noise"}
    assert max(inside["inside"]["hypergradient"].values()) > 0 == max(inside["outside"]["hypergradient"].values())
    cells = {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    assert subnetworks.main(config)["runs"] == summary["runs"]
    assert cells == {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    lines = [line for text in cells.values() for line in json.loads(text)["result"]["runs"]]
    spent = {line["strategy"]: line["gradients"][-1] for line in lines if line["part"] == "inside"}
    assert spent["inside"] <= spent["outside"] == 12 * 40
    assert set(summary["least_important"]) >= {"digits, digits, base", "inside, digits, inside"}
    for name in ("courses", "inside", "importance"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (two_step.Config, {"fractions": (0.1, 0.5)}, "fractions"),
        (two_step.Config, {"num_trials": 3}, "top is 5"),
        (subnetworks.Config, {"strategies": ("divide",)}, "must hold base"),
        (subnetworks.Config, {"seeds": 0}, "seeds must be positive"),
    ],
)
def test_impossible_options_are_named(make, change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)
