"""The benchmark of growth: its slopes, and that every part has sizes and something to measure."""

import json

import jax
import pytest

from experiments.benchmarks import scaling
from experiments.publish import command


def test_slopes_are_those_of_powers():
    rows = [{"size": 10**k, "seconds": 3e-6 * 10 ** (1.5 * k), "temp_bytes": 0} for k in range(5)]
    assert scaling.slope(rows, "seconds") == pytest.approx(1.5)
    assert scaling.slope(rows[:1], "seconds") is None and scaling.slope(rows, "temp_bytes") is None
    assert set(scaling.MAKERS) == set(scaling.SIZES) == set(scaling.PARTS)


def test_a_published_command_names_what_is_not_the_default():
    usual = {"parts": list(scaling.PARTS), "largest": 100_000_000, "repeats": 3}
    assert command("scaling", usual) == "python -m experiments.benchmarks.scaling"
    some = command("scaling", usual | {"parts": ["rows", "trials"], "repeats": 1})
    assert some == "python -m experiments.benchmarks.scaling --parts rows trials --repeats 1"
    some = command("sparse_cv", {"criterion": "cv", "tasks": ["lasso", "elastic net"]})
    assert some == "python -m experiments.sparse --criterion cv --tasks lasso 'elastic net'"


@pytest.mark.slow
def test_what_is_measured_is_written(tmp_path, capsys):
    with jax.enable_x64(False):
        scaling.main(scaling.Config(parts=("rows", "trials"), quick=True, repeats=1, out=tmp_path))
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert [(row["part"], row["size"]) for row in found["rows"]] == [
        ("rows", 1_000),
        ("rows", 10_000),
        ("trials", 100),
        ("trials", 1_000),
    ]
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert [line["part"] for line in found["slopes"]] == ["rows", "trials"]
    assert (tmp_path / "scaling.png").stat().st_size > 1000 and "rows" in capsys.readouterr().out
