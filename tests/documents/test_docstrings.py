"""Docstrings have a head: a noun phrase for a class or a property, a verb in the third person for a function."""

import ast
import re

from tests.helpers import ROOT

HEADLESS = re.compile(
    r"(as|at|by|for|from|how|if|in|of|on|that|to|what|when|where|whether|which|who|why|with|without)\b", re.I
)
VERB = re.compile(r"(?!Bytes|Columns|Flags|Seconds|Trials|Values|Versions|Weights)[A-Z][a-z]*s\b|See `")
# The docstring of a law is the sentence that a broken law is reported with.
LAWS = {f"hypergrad/testing/{name}.py" for name in ("laws", "solver_laws", "units")}


def docstrings(*kinds):
    """Yields file, node and docstring of everything in the packages that has one."""
    for top in ("hypergrad", "ensembles", "experiments"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                    yield path.relative_to(ROOT).as_posix(), node, text


def is_property(node):
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_docstring_is_headless():
    every = docstrings(ast.Module, ast.ClassDef, ast.FunctionDef)
    assert [(path, text.splitlines()[0]) for path, _, text in every if HEADLESS.match(text)] == []


def test_properties_are_nouns():
    properties = [one for one in docstrings(ast.FunctionDef) if is_property(one[1])]
    assert [
        (path, text.splitlines()[0]) for path, _, text in properties if text.startswith(("Returns ", "Says "))
    ] == []


def test_functions_begin_with_a_verb():
    functions = [one for one in docstrings(ast.FunctionDef) if one[0] not in LAWS and not is_property(one[1])]
    assert [(path, text.splitlines()[0]) for path, _, text in functions if not VERB.match(text)] == []
