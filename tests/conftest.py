"""float64, four CPU devices, reproducible examples, one cache of compiled programs for all processes of a session.

Strict promotion of types is not on: optax's Adam raises a Python float to the power of an integer counter.
"""

import fnmatch
import gc
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
# Set before JAX is imported, and inherited by the workers and by the programs that tests start.
OWN_CACHE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="hypergrad-tests-")
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # workers share the cores; waiting threads of LAPACK spin
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # jax 0.10.1 logs two lines for every program from the cache

import equinox as eqx
import hypothesis
import jax
import pytest

from tests.reliability import Outcomes

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_enable_x64", True)
gc.set_threshold(50_000)  # tracing makes many objects and little garbage

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
    """Compiles in one piece, and quick tests without optimisation, which took two thirds of the time."""
    path, kept = config.getoption("reliability"), config.getoption("outcomes")
    if (path or kept) and "PYTEST_XDIST_WORKER" not in os.environ:
        arguments = [word for word in config.invocation_params.args if not word.startswith("--deselect")]
        config.pluginmanager.register(Outcomes(path, shlex.join(arguments), kept))
    if "PYTEST_XDIST_WORKER" not in os.environ:  # inherited by workers and by the programs that tests start
        os.environ["XLA_FLAGS"] += "".join(taken_by_xla(QUICKER))
    if config.getoption("markexpr") == QUICK:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


QUICK = "not slow and not sweep"  # the marks of the README's command
QUICKER = (  # less to compile: the last one halves the time, and programs of the sizes of tests are as quick
    " --xla_cpu_use_fusion_emitters=false",
    " --xla_cpu_parallel_codegen_split_count=1",
    " --xla_backend_optimization_level=1",
)


def taken_by_xla(flags):
    """Tries all in a process of its own, which XLA ends at a flag that it does not know, and then one by one."""
    command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    trial = subprocess.run(command, env=os.environ | {"XLA_FLAGS": "".join(flags)}, stderr=subprocess.DEVNULL)
    if trial.returncode == 0:
        return flags
    return [flag for one in flags for flag in taken_by_xla((one,))] if len(flags) > 1 else ()


@pytest.fixture(autouse=True)
def compiled(request):
    """Slow tests of experiments and tutorials compile programs much as users have them, all others quickly."""
    names, folder = request.fixturenames, request.path.relative_to(Path(__file__).parent).parts[0]
    quickly = folder in ("hypergrad", "ensembles", "documents") or request.config.getoption("markexpr") == QUICK
    disabled = quickly and "optimised" not in names
    if jax.config.values["jax_disable_most_optimizations"] != disabled:
        jax.config.update("jax_disable_most_optimizations", disabled)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(disabled))  # of programs that the test starts
        eqx.clear_caches()
        jax.clear_caches()


@pytest.fixture
def optimised():
    """Programs are optimised, much as users have them: else two loops around one step can round otherwise."""


def pytest_unconfigure():
    """The process that made the cache removes it; workers inherit its name."""
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


def pytest_addoption(parser):
    """`--row 29` keeps the tests of that row of the reliability list; with `-m ""` the slow ones too."""
    parser.addoption("--row", type=int, action="append", help="only tests of this row of tests/reliability.md")
    parser.addoption("--reliability", metavar="FILE", help="only tests of any row; write the table of their outcomes")
    parser.addoption("--outcomes", metavar="FILE", help="keep the outcomes of tests of rows for --reliability")


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(config, items):
    """Marks variants of tests as slow or for sweeps; deselects what belongs to none of the rows asked for."""
    place_variants(items, whole=not any("::" in argument for argument in config.args))
    for item in items:
        item.user_properties += [("row", number) for mark in item.iter_markers("row") for number in mark.args]
    wanted, every = set(config.getoption("row") or ()), config.getoption("reliability")
    if wanted or every:
        rows_of = lambda item: {number for _, number in item.user_properties}
        others = [item for item in items if not (wanted & rows_of(item) if wanted else rows_of(item))]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def place_variants(items, whole):
    """Marks variants of parametrised tests as the mark `variants` says.

    **Raises** `UsageError` naming the patterns that are the id of no variant, where `whole` files were collected.
    """
    unused = {}
    for item in items:
        for mark in item.iter_markers("variants"):
            found = {
                place: [pattern for pattern in patterns if fnmatch.fnmatchcase(item.callspec.id, pattern)]
                for place, patterns in mark.kwargs.items()
            }
            if not found.get("quick"):
                item.add_marker("slow" if found.get("slow") else "sweep")
            function = item.nodeid.partition("[")[0]
            left = unused.setdefault(function, set().union(*mark.kwargs.values()))
            left -= set().union(*found.values())
    wrong = {function: sorted(patterns) for function, patterns in unused.items() if patterns}
    if whole and wrong:
        raise pytest.UsageError(f"patterns of the mark variants without a variant: {wrong}")


@pytest.fixture(scope="module", autouse=True)
def compiled_code_goes_before_maps_run_out():
    """Every compiled program takes about a hundred memory maps, of which a process has 65,530."""
    yield
    if num_maps() > MOST_MAPS:
        eqx.clear_caches()
        jax.clear_caches()


MAPS, MOST_MAPS = Path("/proc/self/maps"), 10_000


def num_maps():
    """Returns the number of memory maps of this process, or infinity where the system does not tell."""
    return MAPS.read_bytes().count(b"\n") if MAPS.exists() else math.inf
