"""The guide to black-box search runs, as one program."""

import re

import pytest

from tests.helpers import run_blocks


@pytest.mark.slow
def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/search.md", {})
    assert not names["state"].failures and len(names["state"].history) == 4
    first = re.match(r"\{'layers': 2, .*\} (\S+) 0", capsys.readouterr().out)
    assert float(first.group(1)) < 0.01
