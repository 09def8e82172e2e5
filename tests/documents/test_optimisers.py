"""The table of optimisers and estimators has all that the code has, and no silent error."""

import inspect
import re

import hypergrad as hg
from experiments.benchmarks.optimisers import ESTIMATORS, optimisers
from hypergrad.testing.optimisers import LEARNED, SMOOTH

from tests.helpers import ROOT

FLAGGED = 0.2  # the relative error from which a status is INACCURATE
NOISY = {name: 0.48 for name in ("ES", "PES", "NRES", "Combined")}  # the same, of noise


def table():
    lines = (ROOT / "docs" / "optimisers.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return rows[0], rows[1:]


def test_every_estimator_has_a_column():
    head, _ = table()
    assert head == ["optimiser", *ESTIMATORS]
    known = {name for name, value in vars(hg).items() if inspect.isclass(value)}
    public = {name for name in known if issubclass(getattr(hg, name), hg.AbstractEstimator)} - {"AbstractEstimator"}
    assert {"Reverse", "ES"} <= public <= {column.split(",")[0] for column in head}


def test_every_optimiser_of_the_harness_has_a_row():
    _, rows = table()
    assert [row[0] for row in rows] == list(optimisers())
    assert set(SMOOTH) | set(LEARNED) <= set(optimisers())
    assert all(len(row) == len(ESTIMATORS) + 1 and all(row) for row in rows)


def test_no_large_error_has_a_good_status():
    head, rows = table()
    for name, *cells in rows:
        for estimator, cell in zip(head[1:], cells, strict=True):
            number = re.fullmatch(r"[\d.e+-]+", cell)
            assert not number or float(cell) <= NOISY.get(estimator, FLAGGED), (name, estimator, cell)
