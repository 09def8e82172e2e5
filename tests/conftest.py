"""float64, four CPU devices, reproducible examples, one cache of compiled programs for all processes of a session.

Strict promotion of types is not on: optax's Adam raises a Python float to the power of an integer counter.
"""

import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
# Set before JAX is imported, and inherited by the workers and by the programs that tests start.
OWN_CACHE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="hypergrad-tests-")
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # jax 0.10.1 logs two lines for every program from the cache

import equinox as eqx
import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)

hypothesis.settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    max_examples=8,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("laws")


def pytest_configure(config):
    """Quick tests are compiled quickly, as in JAX's own tests: two thirds of the time went into optimising programs."""
    if config.getoption("markexpr") == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the programs that tests start
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimised():
    """Programs are compiled as users have them: without optimisation two loops around one step can round otherwise."""
    before = jax.config.values["jax_disable_most_optimizations"]
    _compile_anew(disabled=False)
    yield
    _compile_anew(disabled=before)


def _compile_anew(disabled):
    jax.config.update("jax_disable_most_optimizations", disabled)
    eqx.clear_caches()
    jax.clear_caches()


def pytest_unconfigure():
    """The process that made the cache removes it; workers inherit its name."""
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


def pytest_addoption(parser):
    """`--row 29` keeps the tests of that row of the reliability list; with `-m ""` the slow ones too."""
    parser.addoption("--row", type=int, action="append", help="only tests of this row of tests/reliability.md")


def pytest_collection_modifyitems(config, items):
    """Deselects what belongs to none of the rows asked for."""
    wanted = set(config.getoption("row") or ())
    if wanted:
        others = [item for item in items if not wanted & {n for mark in item.iter_markers("row") for n in mark.args}]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="module", autouse=True)
def compiled_code_goes_with_its_module():
    """Every compiled program takes about a hundred memory maps, of which a process has 65,530."""
    yield
    eqx.clear_caches()
    jax.clear_caches()
