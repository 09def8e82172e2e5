"""Tables of the page on tabular data, written from published results."""

from ..common.report import Row, text_table
from .report import judged

NAMES = {
    "plain": "plain training",
    "plain, averaged": "plain, averaged weights",
    "tpe, 2 % trials": "TPE, trials of 2 %",
    "tpe, 10 % trials": "TPE, trials of 10 %",
    "tune": "tune",
    "online, pes": "online, PES",
    "best fixed": "best of 50 fixed settings",
}
VERDICTS = ("ahead", "level", "behind")


def errors_and_counts(result: Row) -> str:
    """Returns the test errors, then for each rival on how many sets and starts one method is ahead, level, behind."""
    ours = judged(result["config"]["methods"])
    errors = [{NAMES.get(name, name): value for name, value in line.items()} for line in result["table"]]
    counts = [
        {f"`{ours}` against": NAMES.get(line["rival"], line["rival"])} | {word: line[word] for word in VERDICTS}
        for line in result["counts"]
    ]
    return f"{text_table(errors)}\n\n{text_table(counts)}"
