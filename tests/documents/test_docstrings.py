"""Docstrings have a head: a noun phrase for a class or a property, a verb in the third person for a function."""

import ast
import functools
import re

from tests.helpers import ROOT

HEADLESS = re.compile(
    r"(as|at|by|for|from|how|if|in|of|on|that|to|what|when|where|whether|which|who|why|with|without)\b", re.I
)
VERB = re.compile(r"(?!Bytes|Columns|Flags|Seconds|Trials|Values|Versions|Weights)[A-Z][a-z]*s\b|See `")
TOPS = ("hypergrad", "ensembles", "experiments", "tests")
# The docstring of a law is the sentence that a broken law is reported with, that of a test the fact it states.
LAWS = {f"hypergrad/testing/{name}.py" for name in ("laws", "solver_laws", "units")}


@functools.cache
def nodes():
    """File, node and docstring of everything in packages and tests that has one."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    paths = [path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))]
    every = (
        (path.relative_to(ROOT).as_posix(), node) for path in paths for node in statements(ast.parse(path.read_text()))
    )
    found = ((path, node, ast.get_docstring(node)) for path, node in every if isinstance(node, kinds))
    return [one for one in found if one[2]]


def statements(node):
    """Yields a module and its statements, without the expressions in them, which are ten times as many."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from statements(child)


def functions():
    return [one for one in nodes() if isinstance(one[1], ast.FunctionDef)]


def is_property(node):
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_docstring_is_headless():
    assert [(path, text.splitlines()[0]) for path, _, text in nodes() if HEADLESS.match(text)] == []


def test_properties_are_nouns():
    properties = [one for one in functions() if is_property(one[1])]
    assert [
        (path, text.splitlines()[0]) for path, _, text in properties if text.startswith(("Returns ", "Says "))
    ] == []


def test_functions_begin_with_a_verb():
    facts = lambda path: path in LAWS or path.startswith("tests/")
    verbal = [one for one in functions() if not facts(one[0]) and not is_property(one[1])]
    assert [(path, text.splitlines()[0]) for path, _, text in verbal if not VERB.match(text)] == []
