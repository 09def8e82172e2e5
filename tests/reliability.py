"""The table of the documents that says which tests of a run stand for a row of `tests/reliability.md`."""

import collections
import datetime
import json
import platform
import re
import subprocess
from pathlib import Path

import jax

HERE = Path(__file__).parent
INTRODUCTION = """# Reliability

What must hold under bad input, at interruptions, on full disks, and of the numbers, row by row, and how many tests of
each row passed. The list is `tests/reliability.md`; a test belongs to rows by its marker, `@pytest.mark.row(29)`. The
scripts of `tests/faults` repeat what kills processes more often. This page is written by

    {commands}

{counts} from {first} to {last}.

*Numbers of revision `{commit}` on {machine}, Python {python}, jax {jax}.*
"""


class Outcomes:
    """A plugin that counts the outcomes of tests by row and writes the table at the end.

    With a file `kept` the tests can be run in parts: it holds the outcomes of the parts before, and takes those of this
    one; of a test that ran twice the later counts. Without a `path` nothing else is written.

        python -m pytest --outcomes=outcomes.json
        python -m pytest --outcomes=outcomes.json --reliability=docs/reliability.md --collect-only
    """

    def __init__(self, path, arguments, kept=None):
        self.path, self.kept = path and Path(path), kept and Path(kept)
        known = json.loads(self.kept.read_text()) if self.kept and self.kept.exists() else {}
        self.tests, self.parts, self.ran = known.get("tests", {}), known.get("parts", []), {}
        self.part = arguments, str(datetime.date.today())

    def pytest_runtest_logreport(self, report):
        """Keeps the worst outcome of a test: of its setup, itself and its end."""
        worst, rows = ["passed", "skipped", "failed"], [row for name, row in report.user_properties if name == "row"]
        if rows:
            before = self.ran.get(report.nodeid, (rows, "passed"))[1]
            self.ran[report.nodeid] = rows, max(before, report.outcome, key=worst.index)

    def pytest_sessionfinish(self):
        """Writes the table, and the outcomes for the parts to come."""
        self.tests |= self.ran
        self.parts += [self.part] if self.ran else []
        if self.kept:
            self.kept.write_text(json.dumps({"tests": self.tests, "parts": self.parts}))
        if self.path:
            self.write()

    def write(self):
        """Writes the table."""
        commands, days = zip(*self.parts or [self.part], strict=True)
        counts = collections.Counter(outcome for _, outcome in self.tests.values())
        head = INTRODUCTION.format(
            commands="\n    ".join(f"python -m pytest {arguments}" for arguments in dict.fromkeys(commands)),
            counts=", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")),
            first=min(days),
            last=max(days),
            commit=_commit(),
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
        number = int(match[1])
        outcomes = collections.Counter(outcome for rows, outcome in self.tests.values() if number in rows)
        ran = outcomes["passed"] + outcomes["failed"]
        passed = "all" if outcomes["passed"] == ran else f"{outcomes['passed']}"
        return f"{match[0]} {ran} | {passed if ran else 'none ran'} |"


def _commit():
    """Returns the present commit."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
