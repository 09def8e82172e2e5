"""Every argument that is a path refuses what cannot be one, by its name, before anything is trained."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import optax
import optuna
import pytest

import hypergrad as hg
from hypergrad.ground.files import check_folder, check_path
from hypergrad.testing.problems import ridge

from tests.helpers import ROOT
from tests.hypergrad.trials.examples import KEY

SPACE = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0)})
OPTIONS = {"key": KEY, "num_trials": 2}


def loss(trial, key):
    pytest.fail("trained")


def journal(path):
    return hg.trials.search_trials(hg.trials.Random(), SPACE, loss, journal=path, **OPTIONS)


def storage(path):
    searcher = hg.trials.Optuna(lambda seed: optuna.samplers.RandomSampler(seed), storage=path)
    return hg.trials.search_trials(searcher, SPACE, loss, **OPTIONS)


def checkpoint(path):
    case, search = ridge(), hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.sgd(0.1), 1)), optax.sgd(0.1))
    state = search.init(case.problem, case.params, case.hparams)
    return hg.run(search, case.problem, state, key=KEY, budget=1, checkpoint=path, callback=lambda *_: loss(0, 0))


def folder(tmp_path):
    return tmp_path


def in_a_missing_folder(tmp_path):
    return tmp_path / "missing" / "a"


def in_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file" / "a"


def long(tmp_path):
    return str(tmp_path / ("x" * 300))


def nearly_long(tmp_path):
    return str(tmp_path / ("x" * 255))  # no room for the names of its companions


def link_to_itself(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    return tmp_path / "a"


def link_into_a_missing_folder(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "missing" / "a")
    return tmp_path / "a"


def pipe(tmp_path):
    os.mkfifo(tmp_path / "a")
    return tmp_path / "a"


def plug(tmp_path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "a"))
    return tmp_path / "a"


def device(tmp_path):
    return "/dev/full"


def bytes_(tmp_path):
    return bytes(tmp_path / "a")


WRONG = [folder, in_a_missing_folder, in_a_file, long, link_to_itself, link_into_a_missing_folder, pipe, plug, device]
WRONG += [bytes_]


@pytest.mark.row(34)
@pytest.mark.parametrize("make", WRONG)
@pytest.mark.parametrize("use", [journal, storage, checkpoint])
def test_what_is_no_file_is_refused_by_name(tmp_path, use, make):
    with pytest.raises((OSError, TypeError, ValueError), match=rf"\b{use.__name__}\b"):
        use(make(tmp_path))


@pytest.mark.row(34)
@pytest.mark.parametrize("use", [checkpoint, storage])
def test_a_name_without_room_for_a_suffix_is_named(tmp_path, use):
    with pytest.raises(OSError, match=rf"\b{use.__name__}\b.*too long"):
        use(nearly_long(tmp_path))


SCRIPT = """
import os, resource, signal, sys
sys.path[:0] = {path!r}
from tests.hypergrad import test_paths
{limit}
for use in sys.argv[2:]:
    try:
        getattr(test_paths, use)(os.path.join(sys.argv[1], use))
    except OSError as error:
        print(type(error).__name__, *str(error).split())
"""
LIMITS = {  # what the process may do no longer
    "no permission": "os.chmod(sys.argv[1], 0o500); os.setgid(65534); os.setuid(65534)",
    "no space": "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))",
}


@pytest.mark.row(34)
@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_files_that_cannot_be_written_are_named(tmp_path, limit):
    if limit == "no permission" and os.getuid() != 0:
        pytest.skip("only root can become nobody")
    place, uses = tmp_path / "folder", ("journal", "storage", "checkpoint")
    place.mkdir()
    for parent in place.parents[:3]:
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    script = SCRIPT.format(path=sys.path, limit=LIMITS[limit])
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", script, str(place), *uses]
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    lines = found.stdout.splitlines()
    assert len(lines) == len(uses), found.stderr
    for use, line in zip(uses, lines, strict=True):
        assert line.startswith(("PermissionError", "OSError")) and use in line, found.stderr


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_path("~/a", "journal") == str(tmp_path / "a")
    assert check_path(Path("~/a"), "journal") == str(tmp_path / "a")
    assert check_folder("~/b", "journal") == str(tmp_path / "b") and (tmp_path / "b").is_dir()


@pytest.mark.parametrize("use", [journal, checkpoint, storage])
def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch, use):
    """The process goes to another folder while it trains."""
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "before")
    monkeypatch.setitem(globals(), "loss", lambda *_: os.chdir(tmp_path / "after") or 0.5)
    use("a")
    assert not list((tmp_path / "after").iterdir())
    assert not list((tmp_path / "before").glob("*.holder"))


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(FileNotFoundError, match="journal='a' cannot be used"):
        check_path("a", "journal")


def test_a_link_to_a_new_file_is_followed(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    with pytest.raises(BaseException, match="trained"):
        journal(tmp_path / "a")
    assert (tmp_path / "b").exists() and (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("make", [in_a_file, long, link_to_itself, bytes_])
def test_what_is_no_folder_is_refused_by_name(tmp_path, make):
    options = {"fraction": 0.5, "top": 1, "journal": make(tmp_path)}
    with pytest.raises((OSError, TypeError), match=r"\bjournal\b"):
        hg.trials.two_step(hg.trials.Random(), SPACE, loss, **OPTIONS, **options)


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="^journal=.* must be a folder, but is a file"):
        check_folder(tmp_path / "file", "journal")


def test_the_name_of_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="^journal=.*new/' must be a file, but ends as a folder does"):
        check_path(f"{tmp_path}/new/", "journal")


@pytest.mark.parametrize("address", ["sqlite:////missing/study.db", "nothing://there", "://"])
def test_a_data_base_that_cannot_be_opened_is_named(address, monkeypatch):
    monkeypatch.setattr("hypergrad.trials.optuna.storage.PAUSE", 0.0)
    with pytest.raises(ValueError, match="^storage cannot be opened"):
        storage(address)
