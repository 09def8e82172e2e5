"""The guide to minibatches and streams runs, as one program."""

import pytest

from tests.helpers import run_blocks


@pytest.mark.slow
def test_the_guide_runs(capsys):
    names = run_blocks("docs/training.md", {})
    best, epochs = map(float, capsys.readouterr().out.split())
    assert best < 0.4 and 60 <= epochs < 67
    assert names["state"].spent.iterations == 480
