"""Markers name rows of the reliability list."""

import ast
import re

from tests.helpers import ROOT

ROWS = {int(row) for row in re.findall(r"^\| (\d+) \|", (ROOT / "tests" / "reliability.md").read_text(), re.M)}


def marked_rows():
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
                yield from ((ast.literal_eval(number), path) for number in node.args)


def test_every_row_has_a_test():
    assert sorted(ROWS - {number for number, _ in marked_rows()}) == []


def test_markers_name_rows_of_the_list():
    for number, path in marked_rows():
        assert number in ROWS, f"{path} marks row {number}, which tests/reliability.md does not have"
