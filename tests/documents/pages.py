"""Pages of the documents as tables and sentences, whose numbers tests compare."""

import re

from tests.helpers import ROOT

DOCS = ROOT / "docs"
NUMBER = r"(-?[\d,]+(?:\.\d+)?(?:e[+-]?\d+)?)"


def text_of(page):
    return " ".join((DOCS / page).read_text().split())


def lines_of(page):
    """The rows of all tables of a page, as lists of cells."""
    rows = re.findall(r"^\|(.+)\|$", (DOCS / page).read_text(), re.M)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def rows_of(page, label):
    """The rows of a page that begin with a label, numbers without their spread."""
    found = [row[1:] for row in lines_of(page) if row[0].strip("*") == label]
    assert found, (page, label)
    value = lambda cell: float(re.match(NUMBER, cell)[1].replace(",", "")) if re.match(NUMBER, cell) else None
    return [[value(cell) for cell in row] for row in found]


def unit(text):
    """The unit of the last digit shown; zeros at the end of an integer may be rounded."""
    mantissa, _, exponent = text.replace(",", "").partition("e")
    decimals = len(mantissa.partition(".")[2])
    zeros = 0 if decimals else len(mantissa) - len(mantissa.rstrip("0"))
    return 10.0 ** (zeros - decimals + int(exponent or 0))


def agree(page, sentence, *values):
    """Compares the numbers of a sentence, `#` in its pattern, with values, to one unit of the last digit."""
    pattern = re.escape(sentence).replace(r"\#", NUMBER)
    match = re.search(pattern, text_of(page))
    assert match, f"{page} does not say: {sentence}"
    assert len(match.groups()) == len(values)
    for text, value in zip(match.groups(), values, strict=True):
        assert abs(float(text.replace(",", "")) - value) <= 1.001 * unit(text), (page, sentence, text, value)
