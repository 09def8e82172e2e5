"""The guide's code runs, as one program."""

import re

import numpy as np
import pytest

from tests.helpers import run_blocks


@pytest.mark.slow
def test_the_guide_runs(capsys):
    names = run_blocks("docs/ensembles.md", {})
    first, last = map(float, re.search(r"L1 (\S+) -> (\S+)", capsys.readouterr().out).groups())
    assert last < first / 2
    assert names["predictions"].shape == (80, 48)
    np.testing.assert_allclose(names["again"].value, names["history"].value[:2], rtol=1e-9)
