"""The code and the commands of the README and the guide work."""

import re
import tomllib

import pytest

from tests.helpers import ROOT, run_blocks

PAGES = ("README.md", "docs/guide.md")  # the second continues the first
TEXTS = [(ROOT / page).read_text() for page in PAGES]
TEXT = "\n".join(TEXTS)


@pytest.mark.slow
def test_the_python_examples_run(capsys):
    names: dict = {}
    for page in PAGES:
        run_blocks(page, names)
    for name in [name for name in names if name.startswith("test_")]:
        names[name]()
    first, last = map(float, re.search(r"loss (\S+) -> (\S+),", capsys.readouterr().out).groups())
    assert last < first / 2


def test_the_commands_name_what_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"\.\[(\w+)\]", TEXT))
    assert extras and extras <= set(project["optional-dependencies"])
    for module in set(re.findall(r"python -m (experiments[\w.]*)", TEXT)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_linked_files_exist():
    for page, text in zip(PAGES, TEXTS, strict=True):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), (page, target)
