"""The guide's code runs, as one program."""

import re

import numpy as np
import pytest

from tests.helpers import ROOT, run_blocks

TEXT = (ROOT / "docs" / "ensembles.md").read_text()


@pytest.mark.slow
def test_the_guide_runs(capsys):
    names = run_blocks("docs/ensembles.md", {})
    first, last = map(float, re.search(r"L1 (\S+) -> (\S+)", capsys.readouterr().out).groups())
    assert last < first / 2
    assert names["predictions"].shape == (80, 48)
    np.testing.assert_allclose(names["again"].value, names["history"].value[:2], rtol=1e-9)


def test_every_name_in_the_guide_exists():
    import ensembles

    named = set(re.findall(r"`(\w+)(?:\(|`)", TEXT)) - {"sh", "python"}
    known = {name for name in named if hasattr(ensembles, name)}
    foreign = {"NONFINITE", "MemoryError", "CUDA_VISIBLE_DEVICES", "eps_root"}
    assert named - known <= foreign, named - known - foreign
    assert len(known) > 15
