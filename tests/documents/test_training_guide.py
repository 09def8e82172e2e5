"""The guide to minibatches and streams runs, as one program, and names what exists."""

import re

import pytest

import hypergrad as hg

from tests.helpers import ROOT, run_blocks

TEXT = (ROOT / "docs" / "training.md").read_text()


@pytest.mark.slow
def test_the_guide_runs(capsys):
    names = run_blocks("docs/training.md", {})
    best, epochs = map(float, capsys.readouterr().out.split())
    assert best < 0.4 and 60 <= epochs < 67
    assert names["state"].spent.iterations == 480


def test_every_name_in_the_guide_exists():
    named = set(re.findall(r"`hg\.(\w+)", TEXT))
    assert named and all(hasattr(hg, name) for name in named)
