"""Floors, private names, file sizes, and what importing does."""

import ast
import functools
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.ground import compatibility

from tests.helpers import ROOT

SOURCES = sorted(
    path for top in ("hypergrad", "ensembles", "experiments", "tests") for path in (ROOT / top).rglob("*.py")
)


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    """Full names of everything a file imports."""
    package, names = path.relative_to(ROOT).parent.parts, []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


# What each room of the library may import, from the ground up.
FLOORS = [
    {"ground"},
    {"data"},
    {"budget", "pace", "stats", "problem", "tolerances", "projections"},
    {"linear", "inner", "history", "findings"},
    {"training", "curvature"},
    {"estimators"},
    {"spread", "smoothing"},
    {"value_and_hypergrad", "diagnose", "search"},
    {"plan"},
    {"course"},
    {"begin", "failures", "progress"},
    {"run"},
    {"trials", "tuning"},
    {"testing", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@functools.cache
def defined(path):
    """Names that a module or a package defines or imports at its top, its modules included."""
    names = {found.stem for found in path.parent.iterdir()} if path.name == "__init__.py" else set()
    for statement in tree(path).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add((node.asname or node.name).split(".")[0])
    return names


@pytest.mark.slow
def test_names_that_are_imported_exist():
    """Those that are imported when a command runs, and by modules without a test, are among them."""
    sources = set(SOURCES)
    for path in SOURCES:
        for module, _, name in (full.rpartition(".") for full in imports(path)):
            file = ROOT.joinpath(*module.split("."))
            source = file.with_suffix(".py") if file.with_suffix(".py") in sources else file / "__init__.py"
            if source in sources:
                assert name in defined(source), f"{path} imports {name} from {module}, which does not define it"


def room(name):
    return name.split(".")[1] if name.startswith("hypergrad.") else None


def test_imports_go_down():
    """No module imports from its own floor, but from its own room, or from a floor above.

    `ensembles` stands alone; its own ground is the ground of `hypergrad` too, which takes nothing else from it.
    """
    for path in SOURCES:
        parts, names = path.relative_to(ROOT).parts, list(imports(path))
        tops = {name.split(".")[0] for name in names}
        if parts[0] == "ensembles":
            assert not tops & {"hypergrad", "experiments", "tests"}, path
        if parts[0] == "hypergrad":
            assert not tops & {"experiments", "tests"}, path
            assert not [name for name in names if name.startswith("ensembles") and ".ground." not in name], path
            here = parts[1].removesuffix(".py")
            if here == "__init__":
                continue
            for there in {room(name) for name in names} - {None, here}:
                assert there in FLOOR, (path, there)
                assert FLOOR[there] < FLOOR[here], f"{path} imports {there}"


def test_estimators_do_not_import_each_other():
    base = {"common", "base"}
    for path in SOURCES:
        parts = path.relative_to(ROOT).parts
        if parts[:2] == ("hypergrad", "estimators") and parts[2] not in base:
            others = {name.split(".")[2] for name in imports(path) if name.startswith("hypergrad.estimators.")}
            assert others <= base | {parts[2].removesuffix(".py")}, path


def test_jaxopt_has_one_door():
    users = [path.relative_to(ROOT) for path in SOURCES if "jaxopt" in {n.split(".")[0] for n in imports(path)}]
    library = [path.as_posix() for path in users if path.parts[0] not in ("experiments", "tests")]
    assert library == ["hypergrad/inner/solvers.py"]


@pytest.mark.row(35)
def test_no_private_names_and_no_long_files():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for name in imports(path):
            assert not name.startswith(("jax._src", "equinox.internal", "pickle")), (path, name)


def test_no_long_functions():
    """No function of the packages has more than 50 lines, its docstring left out."""
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and path.relative_to(ROOT).parts[0] != "tests":
                documented = ast.get_docstring(node) is not None
                docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
                assert node.end_lineno - node.lineno + 1 - docstring <= 50, (path, node.name)


# What users call, whose options go by name and cannot be left to others.
WIDE = {
    "hypergrad/diagnose.py": {"diagnose"},
    "hypergrad/run.py": {"run"},
    "hypergrad/stats.py": {"__init__"},
    "hypergrad/testing/check.py": {"check_estimator"},
    "hypergrad/trials/gradient_tuning.py": {"run"},
    "hypergrad/trials/masked/convolutional.py": {"__init__"},
    "hypergrad/trials/masked/dense.py": {"__init__"},
    "hypergrad/trials/run.py": {"search_trials"},
    "hypergrad/trials/two_step.py": {"n_step", "two_step"},
    "hypergrad/tuning/tune.py": {"tune"},
}


def test_functions_have_at_most_six_arguments():
    """The exceptions have at most six without their options, which go by name alone."""
    found = {}
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and not name.startswith("tests/"):
                given = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
                assert len(given) <= 6, (name, node.name)
                if len(given) + len(node.args.kwonlyargs) > 6:
                    found.setdefault(name, set()).add(node.name)
    assert found == WIDE


@pytest.mark.slow
@pytest.mark.row(41, 14)
def test_importing_warns_of_nothing_and_leaves_jax_as_it_is():
    code = "import hypergrad, ensembles, jax.numpy; print(jax.numpy.ones(1).dtype)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout.strip()) == (0, "float32"), result.stderr


@pytest.mark.row(44)
@pytest.mark.parametrize("version", ["0.10.2", "0.11.0", "0.11.1", "0.9.2", "0.10.0"])
def test_wrong_jax_versions_are_named(version):
    with pytest.warns(RuntimeWarning, match=rf"jax {version}.*Install jax>=0.10.1"):
        compatibility.warn_if_wrong(version)


@pytest.mark.row(44)
@pytest.mark.parametrize("version", ["0.10.1", "0.12.0", "0.12.0.1", jax.__version__])
def test_right_jax_versions_warn_of_nothing(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compatibility.warn_if_wrong(version)


@pytest.mark.row(44)
@pytest.mark.parametrize("rows", [16_385, 20_001, 32_769])
def test_the_known_miscompilation_is_absent(rows):
    assert not compatibility.miscompiles()
    matrix, data = np.arange(9.0, dtype=np.float32).reshape(3, 3), np.ones((rows, 3), np.float32)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.asarray(matrix) @ row) ** 2)))(data)
    np.testing.assert_allclose(found, ((data @ matrix.T) ** 2).sum(1), rtol=1e-5)
