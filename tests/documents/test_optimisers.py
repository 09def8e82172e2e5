"""The table of optimisers and estimators keeps to the names in the code, and has no silent error."""

import re

from experiments.benchmarks.optimisers import ESTIMATORS, optimisers

from tests.helpers import ROOT

FLAGGED = 0.2  # the relative error from which a status is INACCURATE


def table():
    lines = (ROOT / "docs" / "optimisers.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return rows[0], rows[1:]


def test_its_names_are_those_of_the_code():
    head, rows = table()
    assert head == ["optimiser", *ESTIMATORS]
    names = [row[0] for row in rows]
    assert names == [name for name in optimisers() if name in names] and len(names) == len(set(names)) > 0


def test_no_large_error_has_a_good_status():
    _, rows = table()
    for name, *cells in rows:
        for cell in cells:
            number = re.fullmatch(r"[\d.e+-]+", cell)
            assert not number or float(cell) < FLAGGED or cell in ("exact", "refused"), (name, cell)
