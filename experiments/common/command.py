"""The command line of every experiment."""

import contextlib
import dataclasses
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import pooch
import tyro

from hypergrad.ground.checkpoint import CheckpointError
from hypergrad.ground.files import check_folder

from .config import Options
from .downloads import DataError
from .interrupts import interrupts
from .page import write_page

C = TypeVar("C", bound=Options)


def command(main: Callable[[C], Any], default: C, name: str, **presets: Mapping[str, Any]) -> None:
    """Runs `main` with the options of the command line, writes a page of its results, and says what to do on a stop.

    **Arguments**

    - `default`: the configuration without options.
    - `name`: the module below `experiments` that is run.
    - `presets`: changes of the defaults by the name of the flag that asks for them, such as `quick`.

    Interrupted, the process ends with one line and status 130, or 143 by SIGTERM; see `interrupts`.
    """
    chosen = [preset for preset in presets if f"--{preset}" in sys.argv[1:]]
    if len(chosen) > 1:
        raise SystemExit(f"give one of --{' and --'.join(chosen)}")
    for flag in chosen:
        changes: dict[str, Any] = {flag: True, **presets[flag]}
        default = dataclasses.replace(default, **changes)
    config = tyro.cli(type(default), default=default, prog=f"python -m experiments.{name}")
    try:
        check_folder(config.out, "--out")
    except OSError as error:
        raise SystemExit(str(error)) from None
    keep_programs(config.cache)
    line = f"stopped; what is finished is in {config.out}, the same command goes on from there"
    try:
        with interrupts.installed(line):
            main(config)
            page = write_page(config, name, sys.argv[1:])
        if page is not None:
            print(f"a page with tables and plots: {page}")
    except (FileNotFoundError, DataError, CheckpointError) as error:
        raise SystemExit(str(error)) from None
    except OSError as error:  # a disk that is full, a folder that cannot be written to
        raise SystemExit(f"{error}; {line}") from None


def keep_programs(wanted: bool) -> None:
    """Turns JAX's persistent cache of compiled programs on, unless the user has done so elsewhere, or off."""
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
    elif jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        folder = Path(pooch.os_cache("hypergrad-jax")) / "xla" / _processor()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def quickly_compiled(wanted: bool) -> Iterator[None]:
    """Leaves out most optimisations of XLA inside, if wanted: for runs that compile longer than they compute."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", before or wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def share_cores(jobs: int) -> None:
    """Lets several threads compute side by side.

    XLA hands the programs of all threads to one pool. One thread of it for each job keeps them from waiting for each
    other, and more would divide small products among them, which takes longer. Without effect once JAX has computed
    something; the environment variable NPROC, the number of threads in the pool, goes first.
    """
    if jobs > 1:
        os.environ.setdefault("NPROC", str(jobs))
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # the thread that asks for a result waits for it


def num_cores() -> int:
    """Returns the number of cores that this process may use: `taskset` can leave it few of many."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _processor() -> str:
    """Returns a name of the processor and what it can do: a program compiled for another one may not run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    words = {line.strip() for line in lines if line.startswith(("model name", "flags", "Features"))}
    known = [platform.machine(), platform.processor(), *sorted(words)]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
