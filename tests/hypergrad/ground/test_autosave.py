"""Saving during a run: nothing is saved twice, nothing is lost, a failure is a warning."""

import os
import threading
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.ground import autosave, checkpoint
from hypergrad.ground.autosave import Autosave, Interval
from hypergrad.ground.checkpoint import save_checkpoint

EMPTY = {"value": np.zeros(0, np.float32)}
IDENTITY = {"run": "this one"}


def saver(folder, seconds=None, steps=None):
    return Autosave(folder / "run.ckpt", IDENTITY, [], EMPTY, Interval(seconds, steps))


def take(saver, step):
    """One step, whose state is its number."""
    saver.chunks.append({"value": np.full(1, step, np.float32)})
    if saver.is_due(step):
        saver.save(jnp.int32(step), step)


def go(saver, start, stop):
    saver.begin(jnp.int32(start), start)
    for step in range(start + 1, stop + 1):
        take(saver, step)


def loaded(folder):
    one = saver(folder)
    state = one.load(jnp.int32(0))
    return int(state), one.chunks[0]["value"].tolist()


def test_nothing_there(tmp_path):
    state, one = jnp.int32(0), saver(tmp_path)
    assert one.load(state) is state and one.chunks == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "steps"), [(0, None), (None, 1), (1e9, 3), (None, None)])
def test_state_and_records_come_back(tmp_path, seconds, steps):
    one = saver(tmp_path, seconds, steps)
    go(one, 0, 7)
    one.end(jnp.int32(7))
    assert loaded(tmp_path) == (7, [1, 2, 3, 4, 5, 6, 7])
    two = saver(tmp_path, seconds, steps)
    two.load(jnp.int32(0))
    go(two, 7, 9)
    two.end(jnp.int32(9))
    assert loaded(tmp_path) == (9, [1, 2, 3, 4, 5, 6, 7, 8, 9])


def test_saves_come_after_so_many_steps(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(autosave, "save_checkpoint", lambda path, leaves, *rest: written.append(int(leaves[0])))
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.run)  # at once, so that none is skipped
    monkeypatch.setattr(threading.Thread, "join", lambda self: None)
    one = saver(tmp_path, steps=3)
    go(one, 0, 7)
    one.end(jnp.int32(7))
    assert written == [0, 3, 6, 7]


def test_what_is_saved_grows_by_the_records_alone(tmp_path):
    """The bytes written by ten times the saves are ten times as many."""
    one = saver(tmp_path, steps=1)
    go(one, 0, 50)
    one.end(jnp.int32(50))
    sizes = [(tmp_path / name).stat().st_size for name in ("run.ckpt", "run.ckpt.records")]
    two = saver(tmp_path, steps=1)
    two.load(jnp.int32(0))
    go(two, 50, 500)
    two.end(jnp.int32(500))
    grown = [(tmp_path / name).stat().st_size for name in ("run.ckpt", "run.ckpt.records")]
    assert abs(grown[0] - sizes[0]) < 10 and grown[1] - sizes[1] == 450 * 4


def test_the_loop_goes_on_while_a_save_is_written(tmp_path, monkeypatch):
    release, save = threading.Event(), autosave.save_checkpoint

    def slow(*args):
        release.wait(60)
        save(*args)

    one = saver(tmp_path, steps=1)
    one.begin(jnp.int32(0), 0)
    monkeypatch.setattr(autosave, "save_checkpoint", slow)
    for step in range(1, 6):
        take(one, step)
    assert loaded(tmp_path) == (0, [])
    release.set()
    one.end(jnp.int32(5))
    assert loaded(tmp_path) == (5, [1, 2, 3, 4, 5])


def test_a_save_that_fails_is_a_warning_and_the_next_makes_up_for_it(tmp_path, monkeypatch):
    save, failures = autosave.save_checkpoint, [OSError(28, "No space left on device")] * 2

    def sometimes(*args):
        if failures:
            raise failures.pop()
        save(*args)

    one = saver(tmp_path, steps=1)
    one.begin(jnp.int32(0), 0)
    monkeypatch.setattr(autosave, "save_checkpoint", sometimes)
    with pytest.warns(RuntimeWarning, match="run.ckpt could not be saved: .*No space"):
        for step in (1, 2, 3):
            take(one, step)
            one._join()
    one.end(jnp.int32(3))
    assert loaded(tmp_path) == (3, [1, 2, 3])


@pytest.mark.row(34)
def test_a_full_disk_at_the_end(tmp_path, monkeypatch):
    one = saver(tmp_path)
    go(one, 0, 3)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(autosave, "save_checkpoint", full)
    with pytest.warns(RuntimeWarning, match="could not be saved"):
        one.end(jnp.int32(3))
    assert loaded(tmp_path) == (0, [])


@pytest.mark.row(34)
def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_step(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(autosave, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        saver(tmp_path).begin(jnp.int32(0), 0)
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        saver(tmp_path / "missing")


@pytest.mark.row(39)
def test_two_runs_on_one_file(tmp_path):
    one = saver(tmp_path)
    go(one, 0, 2)
    with pytest.raises(hg.CheckpointError, match=rf"run.ckpt.records is in use by process {os.getpid()} on "):
        saver(tmp_path).begin(jnp.int32(0), 0)
    one.end(jnp.int32(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.ckpt", "run.ckpt.records"]
    assert loaded(tmp_path) == (2, [1, 2])


def test_records_without_their_checkpoint_begin_anew(tmp_path):
    one = saver(tmp_path)
    go(one, 0, 5)
    one.end(jnp.int32(5))
    (tmp_path / "run.ckpt").unlink()
    two = saver(tmp_path)
    assert two.load(jnp.int32(0)) == 0
    go(two, 0, 2)
    two.end(jnp.int32(2))
    assert loaded(tmp_path) == (2, [1, 2])


def test_a_checkpoint_without_its_records_is_refused(tmp_path):
    one = saver(tmp_path)
    go(one, 0, 5)
    one.end(jnp.int32(5))
    (tmp_path / "run.ckpt.records").unlink()
    with pytest.raises(hg.CheckpointError, match="run.ckpt.records cannot be read"):
        saver(tmp_path).load(jnp.int32(0))


def test_records_lie_next_to_the_file_that_a_link_leads_to(tmp_path):
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "run.ckpt").symlink_to(tmp_path / "run.ckpt")
    one = saver(folder)
    go(one, 0, 5)
    one.end(jnp.int32(5))
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run.ckpt", "run.ckpt.records"]
    assert [path.name for path in folder.iterdir()] == ["run.ckpt"] and (folder / "run.ckpt").is_symlink()
    assert loaded(tmp_path) == loaded(folder) == (5, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("log", [[1], "text", {"notes": [1]}, {"notes": {}}, None])
def test_what_a_crafted_file_says_of_records_is_refused(tmp_path, log):
    one = saver(tmp_path)
    save_checkpoint(tmp_path / "run.ckpt", [np.int32(3)], one.identity, log)
    with pytest.raises(hg.CheckpointError, match="run.ckpt"):
        one.load(np.int32(0))


def test_arrays_are_let_go_as_they_are_written(tmp_path, monkeypatch):
    state, alive = [jnp.full(3, float(i)) for i in range(4)], []
    references = [weakref.ref(leaf) for leaf in state]

    def counted(total, array):
        alive.append(sum(reference() is not None for reference in references))
        update(total, array)

    update = checkpoint.update_digest
    monkeypatch.setattr(checkpoint, "update_digest", counted)
    one = saver(tmp_path, steps=1)
    one.log.open()
    release = threading.Event()
    monkeypatch.setattr(one.log, "sync", lambda: release.wait(60))
    one.chunks.append({"value": np.ones(1, np.float32)})
    assert one.is_due(1)
    one.save(state, 1)
    del state
    release.set()
    one._join()
    one.log.close()
    assert alive == [4, 3, 2, 1]
