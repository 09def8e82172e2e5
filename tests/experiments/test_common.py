"""The frame of the experiments: options, finished cells, the command line, and the cache of compiled programs."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from tqdm.auto import tqdm

from experiments.common import cells
from experiments.common.cells import Cells, grid, rows, run_cells
from experiments.common.command import command, quickly_compiled
from experiments.common.config import Common, Fraction, Positive, PositiveFloat, Some
from experiments.common.report import mean_and_spread

from tests.helpers import ROOT


@dataclass(frozen=True)
class Config(Common):
    """An experiment."""

    methods: Some[str] = ("a", "b")
    rate: PositiveFloat = 0.1
    steps: Positive = 5
    sizes: Some[Positive] = (1, 2)
    parts: tuple[Fraction, ...] = ()


def double(advance, method, seed):
    advance(0.5)
    return {"runs": [{"value": 2.0 * seed}], "history": [], "array": np.full((2, 3), np.float32(0.1) * seed)}


def cells_of(config):
    return grid(method=config.methods, seed=config.seed_range())


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("seeds", 0, "must be positive"),
        ("first_seed", -1, "must not be negative"),
        ("rate", float("nan"), "must be positive"),
        ("seeds", 2**40, "is above 2147483647"),
        ("methods", (), "is empty"),
        ("methods", ("a", "a"), "names one twice"),  # whose rows would count twice
        ("sizes", (3, 0), "must be positive"),
        ("parts", (0.5, 1.0), "must lie between 0 and 1"),
    ],
)
def test_options_keep_the_rule_of_their_type(option, value, complaint):
    with pytest.raises(ValueError, match=re.escape(f"{option} {complaint}, got {value}")):
        Config(**{option: value})


def test_large_numbers_have_no_exponent():
    assert (
        mean_and_spread([-22000.0, -22700.0]) == "-22350 ± 490" and mean_and_spread([2e9, 3e9]) == "2.5e+09 ± 7.1e+08"
    )
    assert mean_and_spread([1e-5, 3e-5]) == "2e-05 ± 1.4e-05"


def test_seeds_count_from_the_first():
    config = Config(seeds=2, first_seed=7)
    assert list(config.seed_range()) == [7, 8] and list(config.seed_range(1)) == [7]


def test_finished_cells_are_not_run_again(tmp_path, capsys):
    config, ran = Config(out=tmp_path, seeds=2), []

    def run(advance, method, seed):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append((method, seed))
        return double(advance, method, seed)

    with pytest.raises(KeyboardInterrupt):
        run_cells(config, cells_of(config), run)
    capsys.readouterr()
    found = run_cells(config, cells_of(config), double)
    assert f"3 of 4 cells are finished in {tmp_path / 'cells'}" in capsys.readouterr().err
    assert ran == [("a", 0), ("a", 1), ("b", 0)]
    assert rows(found, "runs") == [{"method": m, "seed": s, "value": 2.0 * s} for m in "ab" for s in (0, 1)]
    assert np.array_equal(np.float32(found[1]["array"]), np.full((2, 3), np.float32(0.1)))
    assert run_cells(config, cells_of(config), run) == found


def test_cells_side_by_side_give_what_they_give_one_by_one(tmp_path):
    both_here, order = threading.Barrier(2, timeout=60), []

    def run(advance, method, seed):
        order.append(seed)
        both_here.wait()
        return double(advance, method, seed)

    config = Config(out=tmp_path / "several", seeds=2)
    found = run_cells(config, cells_of(config), run, jobs=2)
    assert order == [0, 0, 1, 1]  # cells with one last label follow one another
    alone = dataclasses.replace(config, out=tmp_path / "one")
    assert found == run_cells(alone, cells_of(alone), double)


def test_an_error_of_a_cell_ends_the_run_and_keeps_the_others(tmp_path):
    def run(advance, method, seed):
        if (method, seed) == ("a", 1):
            raise ArithmeticError("a in seed 1")
        return double(advance, method, seed)

    config = Config(out=tmp_path, seeds=2)
    with pytest.raises(ArithmeticError, match="a in seed 1"):
        run_cells(config, cells_of(config), run, jobs=2)
    assert {"method": "a", "seed": 0} in Cells(config) and {"method": "a", "seed": 1} not in Cells(config)


def test_progress_never_leaves_its_cell(tmp_path, monkeypatch):
    shown = []

    class Recorded(tqdm):
        def update(self, n=1):
            super().update(n)
            shown.append(self.n)

    def run(advance, method, seed):
        for share in (0.5, 0.25, 2.0):  # forth, back, beyond
            advance(share)
        return {"runs": []}

    monkeypatch.setattr(cells, "tqdm", Recorded)
    run_cells(Config(out=tmp_path), grid(method=["a", "b"], seed=[0]), run)
    assert shown == [0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2]


def test_the_folder_of_another_run_is_refused(tmp_path):
    config = Config(out=tmp_path / "one", rate=0.2)
    run_cells(config, cells_of(config), double)
    with pytest.raises(SystemExit, match=r"one holds another run; .*\{'rate': \(0.2, 0.3\), 'seeds': \(3, 4\)\}"):
        Cells(dataclasses.replace(config, rate=0.3, seeds=4))
    (tmp_path / "one").rename(tmp_path / "moved")
    Cells(dataclasses.replace(config, out=tmp_path / "moved", cache=False))


def test_a_run_that_fails_before_its_first_cell_leaves_the_folder_to_any_other(tmp_path):
    def failing(advance, method, seed):
        raise ArithmeticError("no data")

    config = Config(out=tmp_path)
    with pytest.raises(ArithmeticError, match="no data"):
        run_cells(config, cells_of(config), failing)
    early = Cells(config)
    other = dataclasses.replace(config, rate=0.3)
    assert len(run_cells(other, cells_of(other), double)) == 6
    with pytest.raises(SystemExit, match="holds another run"):
        early.write({"method": "a", "seed": 0}, {})


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_a_damaged_cell_is_refused_by_name(tmp_path, damage):
    config = Config(out=tmp_path, seeds=1)
    run_cells(config, cells_of(config), double)
    first, second = sorted((tmp_path / "cells").iterdir())
    text = first.read_text()
    first.write_text({"flip": text.replace("0.0", "0.5", 1), "cut": text[:-9], "other": second.read_text()}[damage])
    with pytest.raises(SystemExit, match="a-0.json is damaged; delete it"):
        run_cells(config, cells_of(config), double)
    first.unlink()
    assert len(run_cells(config, cells_of(config), double)) == 2


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '{"seeds": 3'])
def test_damaged_options_of_a_folder_are_named(tmp_path, content):
    config = Config(out=tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit, match="config.json is damaged .*; delete it if"):
        Cells(config)


def run_command(monkeypatch, main, *arguments):
    monkeypatch.setattr("sys.argv", ["name", *arguments])
    monkeypatch.setattr("experiments.common.command.keep_programs", lambda wanted: None)
    command(main, Config(), "name", quick={"steps": 1, "seeds": 1})


def test_presets_replace_defaults_and_options_replace_presets(monkeypatch):
    seen = []
    for arguments in ((), ("--quick",), ("--quick", "--steps", "3")):
        run_command(monkeypatch, seen.append, *arguments)
    assert [(config.quick, config.steps, config.seeds) for config in seen] == [(0, 5, 3), (1, 1, 1), (1, 3, 1)]


def test_two_presets_exclude_each_other(monkeypatch):
    monkeypatch.setattr("sys.argv", ["name", "--quick", "--full"])
    with pytest.raises(SystemExit, match="give one of --quick and --full"):
        command(print, Config(), "name", quick={"steps": 1}, full={"steps": 9})


def test_a_bad_option_is_named_without_a_traceback(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_command(monkeypatch, print, "--quick", "--rate", "-1")
    assert "rate must be positive" in capsys.readouterr().err


STOPPED = """
import time
from experiments.common.cells import grid, run_cells
from experiments.common.command import command
from experiments.common.config import Common
def cell(advance, seed):
    if seed == 2:
        print("ready", flush=True)
        time.sleep(60)
    return {"runs": [], "history": []}
command(lambda config: run_cells(config, grid(seed=config.seed_range()), cell), Common(), "name")
"""


@pytest.mark.slow
def test_an_interrupted_command_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, "--out", str(tmp_path)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    last = said.strip().splitlines()[-1]
    assert process.returncode == 130 and "Traceback" not in said
    assert last == f"stopped; what is finished is in {tmp_path}, the same command goes on from there"
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["0.json", "1.json"]


CACHED = """
import jax
from experiments.common.command import keep_programs
keep_programs({wanted})
jax.jit(lambda x: x * 2 + 1)(3.0)
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.variants(slow=["JAX_COMPILATION_CACHE_DIR", "off", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("place", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "off"])
def test_compiled_programs_are_kept(tmp_path, place):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "user"), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    if place.startswith("JAX"):
        environment |= {place: str(tmp_path / "mine"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    code = CACHED.format(wanted=place != "off")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, cwd=ROOT, check=True)
    kept = {name: any((tmp_path / name).rglob("jit_*")) for name in ("user", "mine")}
    assert kept == {"user": place == "XDG_CACHE_HOME", "mine": place.startswith("JAX")}


@pytest.mark.parametrize("before", [False, True])
def test_quick_compilation_ends_where_it_began(before):
    flag = lambda: jax.config.values["jax_disable_most_optimizations"]
    outside = flag()
    try:
        jax.config.update("jax_disable_most_optimizations", before)
        for wanted in (False, True):
            with pytest.raises(ZeroDivisionError), quickly_compiled(wanted):
                assert flag() == (before or wanted)
                raise ZeroDivisionError
            assert flag() == before
    finally:
        jax.config.update("jax_disable_most_optimizations", outside)
