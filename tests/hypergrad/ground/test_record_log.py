"""Records appended to a file come back; damage and other runs are refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.ground.record_log import MAGIC, RecordLog

ROW = {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "b": jax.ShapeDtypeStruct((), jnp.int32)}


def rows(start, stop):
    steps = np.arange(start, stop)
    return {"a": (steps[:, None, None] + np.ones((2, 3)) / 3).astype(jnp.bfloat16), "b": steps.astype(np.int32)}


def log_of(path, row=ROW):
    log = RecordLog(path, row)
    log.open()
    return log


@pytest.fixture
def saved(tmp_path):
    """A file of ten records in two parts, and its header as a checkpoint holds it."""
    log = log_of(tmp_path / "records")
    log.append(rows(0, 3))
    log.append(rows(3, 10))
    log.close()
    return tmp_path / "records", json.loads(json.dumps(log.header))


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype and found[name].tobytes() == wanted[name].tobytes()


def test_what_was_appended_is_read(saved):
    path, header = saved
    same(RecordLog(path, ROW).read(header), rows(0, 10))
    assert header["steps"] == 10 and path.stat().st_size == len(MAGIC) + 10 * (12 + 4)


def test_blocks_change_nothing(saved, monkeypatch):
    monkeypatch.setattr("hypergrad.ground.record_log.BLOCK", 50)
    same(RecordLog(saved[0], ROW).read(saved[1]), rows(0, 10))


def test_what_a_killed_process_left_behind_is_overwritten(saved):
    path, header = saved
    path.write_bytes(path.read_bytes() + b"half a row")
    log = RecordLog(path, ROW)
    same(log.read(header), rows(0, 10))
    log.open()
    log.append(rows(10, 12))
    log.close()
    same(RecordLog(path, ROW).read(log.header), rows(0, 12))


@pytest.mark.row(32)
def test_any_flipped_bit(saved):
    path, header = saved
    good = path.read_bytes()
    for i in range(len(good)):
        for bit in (1, 16, 128):
            path.write_bytes(good[:i] + bytes([good[i] ^ bit]) + good[i + 1 :])
            with pytest.raises(hg.CheckpointError, match=str(path)):
                RecordLog(path, ROW).read(header)


@pytest.mark.row(31)
def test_truncated_anywhere(saved):
    path, header = saved
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(hg.CheckpointError, match=str(path)):
            RecordLog(path, ROW).read(header)


@pytest.mark.parametrize("steps", [-1, 11, 10**18, 1.5, "10", None, True])
def test_a_crafted_number_of_records_allocates_nothing(saved, steps):
    path, header = saved
    with pytest.raises(hg.CheckpointError, match=str(path)):
        RecordLog(path, ROW).read(header | {"steps": steps})


def test_records_of_another_kind_are_refused(saved):
    path, header = saved
    other = ROW | {"b": jax.ShapeDtypeStruct((), jnp.int16)}
    with pytest.raises(hg.CheckpointError, match="other records"):
        RecordLog(path, other).read(header)


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "records").write_text("my thesis")
    with pytest.raises(hg.CheckpointError, match="not a file of records"):
        log_of(tmp_path / "records")
    assert (tmp_path / "records").read_text() == "my thesis"


@pytest.mark.row(39)
def test_two_runs_on_one_file(tmp_path):
    first = log_of(tmp_path / "records")
    first.append(rows(0, 3))
    with pytest.raises(hg.CheckpointError, match="in use"):
        log_of(tmp_path / "records")
    first.close()
    same(RecordLog(tmp_path / "records", ROW).read(first.header), rows(0, 3))
    log_of(tmp_path / "records").close()


def test_records_without_arrays(tmp_path):
    log = log_of(tmp_path / "records", None)
    log.append(None)
    log.close()
    assert RecordLog(tmp_path / "records", None).read(log.header) is None


def test_a_write_that_fails_is_made_up_for(tmp_path, monkeypatch):
    log = log_of(tmp_path / "records")
    log.append(rows(0, 3))
    file = log._file

    class Full:
        truncate = staticmethod(file.truncate)

        @staticmethod
        def write(content):
            file.write(content[:5])
            raise OSError("No space left on device")

    monkeypatch.setattr(log, "_file", Full)
    with pytest.raises(OSError, match="No space"):
        log.append(rows(3, 5))
    monkeypatch.setattr(log, "_file", file)
    log.append(rows(3, 5))
    log.close()
    same(RecordLog(tmp_path / "records", ROW).read(log.header), rows(0, 5))
    assert os.path.getsize(tmp_path / "records") == len(MAGIC) + 5 * 16
