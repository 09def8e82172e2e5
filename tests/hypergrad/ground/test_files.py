"""Files are replaced as a whole, or stay as they were."""

import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from hypergrad.ground.files import HOST, check_path, replacing

from tests.helpers import ROOT


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(file) as new:
        new.write(b"half")
        new.flush()
        assert file.read_bytes() == b"old"
        raise RuntimeError
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    with replacing(file) as new:
        new.write(b"new")
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


WRITES = """
import os, sys, time
from hypergrad.ground.files import replacing
for file in sys.argv[1:]:  # in a process each, of which none imports JAX again
    if (writer := os.fork()) == 0:
        with replacing(file) as new:
            new.write(b"half of the new one")
            new.flush()
            print(os.getpid(), flush=True)
            time.sleep(60)
    print(os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.row(30)
def test_a_process_killed_in_the_midst_of_a_write_leaves_the_old_file(tmp_path):
    files = {number: tmp_path / number.name / "a" for number in (signal.SIGKILL, signal.SIGTERM)}
    for file in files.values():
        file.parent.mkdir()
        file.write_bytes(b"old")
    command = [sys.executable, "-W", "ignore", "-c", WRITES, *files.values()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for number, file in files.items():
            os.kill(int(process.stdout.readline()), number)
            assert int(process.stdout.readline()) == -number and file.read_bytes() == b"old"
            assert file.with_name("a.tmp").read_bytes() == b"half of the new one"
            with replacing(file) as new:
                new.write(b"new")
            assert file.read_bytes() == b"new" and list(file.parent.iterdir()) == [file]


def test_a_temporary_file_of_a_killed_process_is_dropped(tmp_path):
    (tmp_path / "a.tmp").write_bytes(b"half of something long")
    with replacing(tmp_path / "a") as new:
        new.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_several_processes_may_write_a_shared_file(tmp_path):
    file = tmp_path / "a"
    own, another, gone = (tmp_path / f"a.{HOST}-{number}.tmp" for number in (os.getpid(), os.getppid(), 2**31))
    for left in (own, another, gone):
        left.write_bytes(b"half")
    with replacing(file, shared=True) as new:
        new.write(b"new")
        with replacing(tmp_path / "b", shared=True) as other:
            other.write(b"other")
    assert file.read_bytes() == b"new" and another.read_bytes() == b"half"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", another.name, "b"]


def test_permissions_and_links_are_kept(tmp_path):
    target, link = tmp_path / "folder" / "a", tmp_path / "link"
    target.parent.mkdir()
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with replacing(link) as new:
        new.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert not list(tmp_path.glob("*.tmp"))


def test_a_new_file_has_the_permissions_of_the_process(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as new:
            new.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("path", [True, 3, np.int64(3), None, b"bytes", object()])
def test_what_is_no_path_is_refused_by_name(path):
    with pytest.raises(TypeError, match="^journal must be a path"):
        check_path(path, "journal")


def test_a_folder_that_is_missing_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="^journal=.*missing does not exist"):
        check_path(tmp_path / "missing" / "a", "journal")
    with pytest.raises(NotADirectoryError, match="^journal=.*file is not a folder"):
        check_path(tmp_path / "file" / "a", "journal")
    for path in ("", "a\0b"):
        with pytest.raises(ValueError, match="^journal must be the path"):
            check_path(path, "journal")
