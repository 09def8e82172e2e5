"""The code of the README and the guide works."""

import re

import pytest

from tests.helpers import run_blocks

PAGES = ("README.md", "docs/guide.md")  # the second continues the first


@pytest.mark.slow
def test_the_python_examples_run(capsys):
    names: dict = {}
    for page in PAGES:
        run_blocks(page, names)
    for name in [name for name in names if name.startswith("test_")]:
        names[name]()
    first, last = map(float, re.search(r"loss (\S+) -> (\S+),", capsys.readouterr().out).groups())
    assert last < first / 2
