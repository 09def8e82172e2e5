"""The guide to black-box search runs, as one program, and names what exists."""

import re

import pytest

import hypergrad as hg

from tests.helpers import ROOT, run_blocks

TEXT = (ROOT / "docs" / "search.md").read_text()


@pytest.mark.slow
def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/search.md", {})
    assert not names["state"].failures and len(names["state"].history) == 4
    first = re.match(r"\{'layers': 2, .*\} (\S+) 0", capsys.readouterr().out)
    assert float(first.group(1)) < 0.01


def test_every_name_in_the_guide_exists():
    named = set(re.findall(r"`hg\.(?:trials\.)?(\w+)", TEXT)) | set(re.findall(r"`([A-Z]\w+)(?:\(|`)", TEXT))
    foreign = {"NaN"}
    assert {name for name in named if not (hasattr(hg, name) or hasattr(hg.trials, name))} <= foreign
    assert len(named) > 15
