"""Names in documents exist: objects and their arguments, files, commands and their options, in all pages."""

import ast
import builtins
import inspect
import re
import tomllib

import pytest

import ensembles as ens
import hypergrad as hg
import hypergrad.testing

from tests.helpers import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.as_posix(),
)
NAMED = {"hg": hg, "hypergrad": hg, "ens": ens, "ensembles": ens, "evidence": ens.evidence, "linear": hg.linear}
ROOMS = (hg, hg.trials, hg.linear, hg.curvature, hg.projections, hg.testing, ens)
SOURCES = "\n".join(
    file.read_text() for room in ("hypergrad", "ensembles", "experiments") for file in (ROOT / room).rglob("*.py")
)
FOREIGN = {
    *(
        "LassoCV",
        "ElasticNetCV",
        "SpectralNorm",
        "DataLoader",
        "StatefulDataLoader",
        "MetaAdam",
        "RecursiveCheckpointAdjoint",
    ),
    *("FK_den", "advance"),  # an array of a file, and the argument of a function
}


def name(page):
    return page.relative_to(ROOT).as_posix()


def resolved(path):
    """The object that a dotted name leads to; a field of a class counts, and stands for nothing that is called."""
    first, *rest = path.split(".")
    found = NAMED[first]
    for part in rest:
        if part in getattr(found, "__annotations__", {}) and not hasattr(found, part):
            return None
        if not hasattr(found, part):
            raise AttributeError(path)
        found = getattr(found, part)
    return found


def called(node):
    """The object of ours that a call names, in a room of its own or by itself; `None` for others."""
    path = ast.unparse(node.func)
    if not re.fullmatch(r"[\w.]+", path):
        return None
    if path.split(".")[0] in NAMED:
        return resolved(path)
    return next((vars(room)[path] for room in ROOMS if path in vars(room)), None)


def calls(text):
    """The calls in code between back quotes that is an expression, and in blocks of Python."""
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) + re.findall(r"```py(?:thon)?\n(.*?)```", text, re.S):
        try:
            parsed = ast.parse(code)
        except SyntaxError:
            continue
        yield from (node for node in ast.walk(parsed) if isinstance(node, ast.Call))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_objects_of_ours_exist(page):
    code = " ".join(re.findall(r"`[^`\n]+`|```.*?```", page.read_text(), re.S))
    paths = set(re.findall(r"(?<![\w./-])((?:hg|hypergrad|ens|ensembles)(?:\.[A-Za-z]\w*)+)(?![\w/])", code))
    missing = []
    for path in paths:
        try:
            resolved(path)
        except AttributeError:
            missing.append(path)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_by_themselves_exist(page):
    """Classes, and functions that are called, between back quotes: ours, of this page, or of others."""
    text = page.read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    named = set(re.findall(r"`(\w+)\(", prose) + re.findall(r"`([A-Z]\w*[a-z]\w*)`", prose)) - FOREIGN
    known = lambda word: any(hasattr(room, word) for room in (*ROOMS, builtins))
    written = lambda word: re.search(rf"\b(?:def|class) {word}\b|^{word} = ", text + SOURCES, re.M)
    assert sorted(word for word in named if not (known(word) or written(word))) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_arguments_of_ours_exist(page):
    wrong = []
    for node in calls(page.read_text()):
        function = called(node)
        if not callable(function):
            continue
        parameters = inspect.signature(function).parameters
        takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        named = {keyword.arg for keyword in node.keywords if keyword.arg}
        wrong += [] if takes_all or named <= set(parameters) else [ast.unparse(node)]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_exist(page):
    text = page.read_text()
    quoted = re.findall(r"`((?:docs|tests|experiments|hypergrad|ensembles|\.ci)/[\w./-]+)`", text)
    linked = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", re.sub(r"`[^`\n]*`|```.*?```", "", text, flags=re.S))
    missing = [path for path in quoted if not (ROOT / path).exists()]
    missing += [path for path in linked if not (page.parent / path).exists()]
    assert missing == []


def options(module):
    """The text in which the options of a command are defined: its package, and what all configurations share."""
    path = ROOT / module.replace(".", "/")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    shared = ROOT / "experiments" / "common" / "config.py"
    study = sorted((ROOT / "experiments" / "study").glob("*.py")) if "study." in module else []
    return "\n".join(file.read_text() for file in [*files, *study, shared])


def test_commands_and_their_options_exist():
    commands = set()
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        commands |= set(re.findall(r"python -m ((?:experiments|tests|hypergrad)[\w.]*)([^`\n]*)", text))
    assert len(commands) > 30
    for module, rest in commands:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
        for option in re.findall(r"(?<!\S)--([a-z][\w-]*)", rest.split("#")[0]):
            field = option.removeprefix("no-").replace("-", "_")
            found = re.search(rf"^    {field}: |[\"']--{option}[\"']", options(module), re.M)
            assert found or option == "help", (module, option)


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [page.read_text() for page in PAGES]
    extras = {
        extra
        for text in texts
        for found in re.findall(r"(?:\.|hypergrad-jax)\[([\w,]+)\]", text)
        for extra in found.split(",")
    }
    assert len(extras) > 3 and extras <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_number_at_the_start_of_a_line_begins_a_list(page):
    """A line within a sentence that begins with `10. ` is shown as an item of a list."""
    items = [int(number) for number in re.findall(r"^ *(\d+)\. ", page.read_text(), re.M)]
    assert all(number == 1 or number - 1 in items for number in items)
