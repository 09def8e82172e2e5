"""A lock ends with its process, whatever that process has left behind, and bars nobody where there are no locks."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

import hypergrad as hg
from hypergrad.ground.lock import locked

from tests.helpers import ROOT

HOLDER = """
import os, sys, time
from hypergrad.ground.lock import locked
with open(sys.argv[1], "a+b", buffering=0) as file, locked(file, sys.argv[1]):
    if os.fork() == 0:
        time.sleep(30)  # as a process of a pool that nobody ends
        os._exit(0)
    print("locked", flush=True)
    time.sleep(30)
"""


def lock(path):
    with open(path, "a+b", buffering=0) as file, locked(file, str(path)):
        return True


@pytest.mark.slow
@pytest.mark.row(39)
def test_a_process_that_the_holder_has_forked_keeps_nobody_out(tmp_path):
    path = tmp_path / "a"
    command = [sys.executable, "-W", "ignore", "-c", HOLDER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as holder:
        try:
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(hg.CheckpointError, match=f"a is in use by process {holder.pid} on "):
                lock(path)
            holder.kill()
            holder.wait()
            assert lock(path)
        finally:
            os.killpg(holder.pid, 9)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, number):
    def without(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.warns(RuntimeWarning, match="a lies where files cannot be locked .*let no other process"):
        assert lock(tmp_path / "a")


@pytest.mark.parametrize("name", [b"\xff\xfe", None])
def test_a_holder_without_a_readable_name(tmp_path, name):
    path = tmp_path / "a"
    with open(path, "a+b", buffering=0) as file, locked(file, str(path)):
        (tmp_path / "a.holder").unlink()
        if name is not None:
            (tmp_path / "a.holder").write_bytes(name)
        with pytest.raises(hg.CheckpointError, match="a is in use by another process"):
            lock(path)
