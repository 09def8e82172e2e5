"""The site names every public name, and its pages of code run."""

import importlib.util
import inspect
import re
import warnings

import pytest

import ensembles
import hypergrad as hg
import hypergrad.testing

from tests.helpers import ROOT, as_users_run_it, run_blocks

DOCS = ROOT / "docs"
WRITTEN = [
    entry for page in (DOCS / "api").glob("*.md") for entry in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
]
# A function in a module of its own name is written with the name twice: once would show the module.
ENTRIES = {re.sub(r"\.(\w+)\.\1$", r".\1", entry) for entry in WRITTEN}
PACKAGES = {"hypergrad": hg, "hypergrad.trials": hg.trials, "hypergrad.testing": hg.testing, "ensembles": ensembles}
MODULES = {f"hypergrad.{name}": getattr(hg, name) for name in ("curvature", "linear", "projections", "tolerances")}
# Tolerances of what is printed where it holds times of microseconds, or a search that amplifies rounding.
LOOSE = {"diagnose.md": 100.0, "schedules.md": 2.0}
# On a nearly singular system rounding decides whether a direction of negative curvature is met.
IGNORED = {"diagnose.md": "|NEGATIVE_CURVATURE"}
FEWER = {  # trials of a worker; seeds of TPE, and its gradients
    "trials.md": [("num_trials=3", "num_trials=2"), ("in range(3)", "in range(1)"), ("=spent)", "=spent // 5)")]
}


def public(module):
    """Names without an underscore that the package defines: no modules, and nothing imported from elsewhere."""
    ours = ("hypergrad", "ensembles")
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", "").startswith(ours)
        and callable(value)
    }


def test_every_public_name_has_an_entry():
    wanted = {f"{package}.{name}" for package, module in PACKAGES.items() for name in public(module)}
    own = {
        f"{package}.{name}"
        for package, module in MODULES.items()
        for name in public(module)
        if vars(module)[name].__module__.startswith(module.__name__)
    }
    elsewhere = {entry.rsplit(".", 1)[-1] for entry in ENTRIES}
    assert sorted(wanted - ENTRIES) == []
    assert sorted(name for name in own if name.rsplit(".", 1)[-1] not in elsewhere) == []


def test_every_entry_exists():
    shown_whole = re.compile(r"ensembles\.evidence|hypergrad\.testing\.\w+")
    modules = {entry for entry in WRITTEN if (ROOT / entry.replace(".", "/")).with_suffix(".py").exists()}
    assert {entry for entry in modules if not shown_whole.fullmatch(entry)} == set()
    for entry in ENTRIES:
        package = next(
            name for name in sorted(PACKAGES | MODULES, key=len, reverse=True) if entry.startswith(name + ".")
        )
        assert hasattr((PACKAGES | MODULES)[package], entry.removeprefix(package + ".")), entry


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", menu[menu.index("\nnav:") :]))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/moving.md", "docs/training-state.md"])
def test_pages_of_code_run(page):
    run_blocks(page, {})


# CI installs the first two for the slow tests.
LIBRARIES = {"pandas": "pandas", "tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


@pytest.mark.slow
def test_the_recipes_run(tmp_path, monkeypatch):
    """Blocks that need another library run after the others, where it is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = run_blocks("docs/recipes.md", {})
    for language, package in LIBRARIES.items():
        if importlib.util.find_spec(package):
            with as_users_run_it(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the library
                run_blocks("docs/recipes.md", names, f"python {language}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_code_with_torch_runs():
    """Blocks that need other libraries run where those are installed, among the others of their page."""
    for package in ("higher", "torchopt", "betty"):
        pytest.importorskip(package)
    with as_users_run_it():
        run_blocks("docs/moving.md", {}, "python(?: torch)?")


def test_every_page_with_code_is_run_by_a_test():
    """A page whose code is not a program of its own marks it `py`."""
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    pages = [page for page in DOCS.rglob("*.md") if re.search(r"^```python", page.read_text(), re.M)]
    named = lambda page: re.search(rf"[\"/]{page.relative_to(DOCS).as_posix()}\"|\"{page.name}\"", tests)
    run = lambda page: page.parent.name == "tutorials" or named(page)
    assert sorted(page.name for page in pages if not run(page)) == []


TUTORIALS = sorted(path.name for path in (DOCS / "tutorials").glob("*.md"))
TRAINED_LONG = ["ensembles.md", "schedules.md", "trials.md"]  # longer than what compiles


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TUTORIALS if page not in TRAINED_LONG])
def test_tutorials_run_and_draw(page, tmp_path, monkeypatch):
    run_and_draw(page, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("page", TRAINED_LONG)
def test_long_tutorials_run_and_draw(page, tmp_path, monkeypatch):
    run_and_draw(page, tmp_path, monkeypatch)


def run_and_draw(page, tmp_path, monkeypatch):
    """A tutorial runs as users run it, in float32 and with the usual promotion of types, and draws its images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # of a notebook its folder
    options = {"rtol": LOOSE.get(page, 0.1), "ignored": IGNORED.get(page, ""), "fewer": FEWER.get(page, ())}
    with as_users_run_it():
        run_blocks(f"docs/tutorials/{page}", {}, **options)
    text = (DOCS / "tutorials" / page).read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == set(re.findall(r"/images/(\w+\.png)", text))
