"""The package as a stranger installs it: one version, complete metadata, extras named where they are missing."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

import hypergrad as hg
from hypergrad.ground import compatibility

from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("hypergrad", "ensembles")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def distribution(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def test_the_version_stands_once():
    assert importlib.metadata.version("hypergrad-jax") == hg.__version__
    assert f"\nversion: {hg.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {hg.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_jax_that_is_checked_for_is_the_jax_that_is_required():
    assert compatibility.RIGHT in PROJECT["dependencies"]


@pytest.mark.slow
def test_whatever_is_imported_is_required():
    """The package itself requires what the top of a module imports, and one of its extras what functions import."""
    required = {distribution(line) for line in PROJECT["dependencies"]}
    extras = {distribution(line) for lines in PROJECT["optional-dependencies"].values() for line in lines}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES):
                nested = node.col_offset > 0 or path.parent.name == "testing"
                assert name in required | (extras if nested else set()), (path, name)


def test_extras_in_messages_and_documents_exist():
    texts = [*MODULES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "experiments").rglob("*.py")]
    named = {extra for path in texts for extra in re.findall(r"hypergrad-jax\[(\w+)\]", path.read_text())}
    assert named <= set(PROJECT["optional-dependencies"]) and {"optuna", "plot", "progress", "testing"} <= named
    for path in MODULES:
        assert not re.search(r"pip install (?!'hypergrad-jax\[[\w{}]+\]')", path.read_text()), path


PIP = (sys.executable, "-m", "pip")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def fresh_python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel and its requirements, without extras."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "-q", "--no-compile", wheel], check=True)  # compiled when used
    return python


def run(folder, *command):
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return found.stdout + found.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == {
        path.relative_to(ROOT).as_posix() for path in [*MODULES, *(ROOT / package / "py.typed" for package in PACKAGES)]
    }
    assert {name.partition("/")[2] for name in metadata} == {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    (described,) = (name for name in metadata if name.endswith("METADATA"))
    assert "\nLicense-Expression: Apache-2.0\n" in zipfile.ZipFile(wheel).read(described).decode()


@pytest.mark.slow
def test_pip_shows_who_what_and_where(fresh_python):
    shown = run(fresh_python.parent, *PIP, "--python", fresh_python, "show", "-v", "hypergrad-jax")
    for part in (
        f"Version: {hg.__version__}",
        f"Summary: {PROJECT['description']}",
        "Author: The hypergrad-jax developers",
        "Typing :: Typed",
        *(f"{name}, {url}" for name, url in PROJECT["urls"].items()),
    ):
        assert part in shown, shown


MISSING = {  # what an extra is for
    "testing": "import hypergrad.testing",
    "optuna": "s = ht.Optuna(lambda seed: None); s.ask(s.init(space, key))",
    "progress": "ht.search_trials(ht.Random(), space, ht.PerTrial(print), key=key, num_trials=1, progress=True)",
    "plot": "hg.Diagnosis(()).plot('x.png')",
}
WITHOUT_EXTRAS = f"""
import ensembles, hypergrad as hg, traceback
print(hg.__version__)
import jax
ht = hg.trials
key, space = jax.random.key(0), ht.Space({{'x': ht.Float(0, 1)}})
for code in {list(MISSING.values())}:
    try:
        exec(code)
    except Exception:
        print(*traceback.format_exc().splitlines()[-1:])
"""


@pytest.mark.slow
def test_without_extras_both_packages_import_and_name_what_is_missing(fresh_python):
    version, *said = run(fresh_python.parent, fresh_python, "-W", "error", "-c", WITHOUT_EXTRAS).splitlines()
    assert version == hg.__version__
    refused = [line for line in said if line.startswith("ImportError: ")]
    for extra, line in zip(MISSING, refused, strict=True):
        assert line.endswith(f"pip install 'hypergrad-jax[{extra}]'"), line
