"""The table of the documents that says which tests of a run stand for a row of `tests/reliability.md`."""

import collections
import datetime
import platform
import re
from pathlib import Path

import jax

HERE = Path(__file__).parent
INTRODUCTION = """# Reliability

What must hold under bad input, at interruptions, on full disks, and of the numbers, row by row, and how many tests of
each row passed. The list is `tests/reliability.md`; a test belongs to rows by its marker, `@pytest.mark.row(29)`. The
scripts of `tests/faults` repeat what kills processes more often. This page is written by

    python -m pytest {arguments}

{counts} on {date}, with Python {python}, jax {jax} on {machine}.
"""


class Outcomes:
    """A plugin that counts the outcomes of tests by row and writes the table at the end."""

    def __init__(self, path, arguments):
        self.path, self.arguments = Path(path), arguments
        self.rows = collections.defaultdict(dict)

    def pytest_runtest_logreport(self, report):
        """Keeps the worst outcome of a test: of its setup, itself and its end."""
        worst = ["passed", "skipped", "failed"]
        for name, row in report.user_properties:
            if name == "row":
                before = self.rows[row].get(report.nodeid, "passed")
                self.rows[row][report.nodeid] = max(before, report.outcome, key=worst.index)

    def pytest_sessionfinish(self):
        """Writes the table."""
        tests = {nodeid: outcome for row in self.rows.values() for nodeid, outcome in row.items()}
        counts = collections.Counter(tests.values())
        head = INTRODUCTION.format(
            arguments=self.arguments,
            counts=", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")),
            date=datetime.date.today(),
            python=platform.python_version(),
            jax=jax.__version__,
            machine=f"{jax.device_count()} {jax.devices()[0].device_kind} devices",
        )
        body = (HERE / "reliability.md").read_text()
        self.path.write_text(head + "\n" + self.table(body[body.index("## ") :]))

    def table(self, text):
        """Returns the list with two more columns."""
        text = re.sub(r"^(\| row \| .* \|)$", r"\1 tests | passed |", text, flags=re.M)
        text = text.replace("|---|---|", "|---|---|---|---|")
        return re.sub(r"^\| (\d+) \| .* \|$", self.row, text, flags=re.M)

    def row(self, match):
        """Returns a row with the number of its tests, and of those that passed."""
        outcomes = collections.Counter(self.rows[int(match[1])].values())
        ran = outcomes["passed"] + outcomes["failed"]
        passed = "all" if outcomes["passed"] == ran else f"{outcomes['passed']}"
        return f"{match[0]} {ran} | {passed if ran else 'none ran'} |"
