"""Checkpoints: a damaged one, or one of another run, is refused; one of the same run is taken."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground import checkpoint
from hypergrad.ground.checkpoint import load_checkpoint, save_checkpoint
from hypergrad.testing import laws
from hypergrad.testing.problems import net, ridge

from tests.helpers import ROOT

INNER = hg.OptaxSolver(optax.sgd(0.1), 3)
OUTER = optax.sgd(0.1)
SEARCH = hg.GradientSearch(hg.Reverse(INNER), OUTER)


def go(file, budget=6, search=SEARCH, case=None, key=laws.KEY, **options):
    case = ridge() if case is None else case
    state = search.init(case.problem, case.params, case.hparams)
    return hg.run(search, case.problem, state, key=key, budget=budget, checkpoint=file, **options)


@pytest.fixture
def saved(tmp_path):
    go(tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


IDENTITY = {"run": "this one"}
ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(4)}


@pytest.fixture
def small(tmp_path):
    save_checkpoint(tmp_path / "small.ckpt", jax.tree.leaves(ARRAYS), IDENTITY)
    return tmp_path / "small.ckpt"


def not_refused(file, contents):
    """The places of damage that raise no CheckpointError, and what happened instead."""
    found = {}
    for place, content in contents:
        file.write_bytes(content)
        try:
            load_checkpoint(file, ARRAYS, IDENTITY)
            found[place] = "accepted"
        except hg.CheckpointError as error:
            assert str(file) in str(error)
        except Exception as error:
            found[place] = repr(error)
    return found


def flipped(content, place, bit):
    damaged = bytearray(content)
    damaged[place] ^= bit
    return bytes(damaged)


def test_what_is_saved_is_loaded(small):
    found, identity, log = load_checkpoint(small, ARRAYS, IDENTITY)
    assert identity == IDENTITY and log == {}
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


DTYPES = ["bool", "int8", "uint16", "int64", "float16", "float64", "complex128", "bfloat16", "int2", "uint4", "int4"]
DTYPES += ["float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn"]


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_of_jax_comes_back_bit_by_bit(tmp_path, name):
    array = jnp.asarray(np.arange(6).reshape(2, 3) % 2, getattr(jnp, name + "_" * (name == "bool")))
    tree = {"jax": array, "scalar": array[0, 1], "numpy": np.asarray(array), "empty": array[:0]}
    save_checkpoint(tmp_path / "a", jax.tree.leaves(tree), IDENTITY)
    found = load_checkpoint(tmp_path / "a", tree, IDENTITY)[0]
    for key, leaf in tree.items():
        assert (found[key].dtype, found[key].shape, type(found[key])) == (leaf.dtype, leaf.shape, type(leaf))
        assert np.asarray(found[key]).tobytes() == np.asarray(leaf).tobytes()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys_come_back_by_their_data(tmp_path, impl):
    keys = {"one": jax.random.key(3, impl=impl), "many": jax.random.split(jax.random.key(4, impl=impl), 5)}
    save_checkpoint(tmp_path / "a", jax.tree.leaves(keys), IDENTITY)
    found = load_checkpoint(tmp_path / "a", keys, IDENTITY)[0]
    for name, key in keys.items():
        assert found[name].dtype == key.dtype
        assert jnp.all(jax.random.key_data(found[name]) == jax.random.key_data(key))
    others = jax.tree.map(lambda key: jax.random.key_data(key), keys)
    with pytest.raises(hg.CheckpointError, match="other arrays"):
        load_checkpoint(tmp_path / "a", others, IDENTITY)


@pytest.mark.row(43)
def test_arrays_return_to_their_devices(tmp_path):
    spread = jax.sharding.NamedSharding(jax.make_mesh((4,), ("rows",)), jax.sharding.PartitionSpec("rows"))
    tree = {"spread": jax.device_put(jnp.arange(8.0), spread), "third": jax.device_put(jnp.ones(3), jax.devices()[2])}
    save_checkpoint(tmp_path / "a", jax.tree.leaves(tree), IDENTITY)
    found = load_checkpoint(tmp_path / "a", tree, IDENTITY)[0]
    assert found["spread"].sharding == spread and found["third"].devices() == {jax.devices()[2]}
    assert jnp.all(found["spread"] == tree["spread"])


def craft(file, content, body=b"", total=None):
    """A file with valid checksums and any header."""
    header = checkpoint.MAGIC + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n"
    total = hashlib.sha256(body).hexdigest() if total is None else total
    file.write_bytes(header + body + checkpoint._trailer(header, total))


GOOD = {"identity": IDENTITY, "arrays": [["float64", [2, 3]], ["int32", []]], "log": {}}
CRAFTED = {
    "no JSON": b"{",
    "other JSON": [1, 2],
    "a number": 7,
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a long number": b'{"identity": ' + b"9" * 10_000 + b"}",
    "no identity": {name: GOOD[name] for name in ("arrays", "log")},
    "identity a list": GOOD | {"identity": [1]},
    "identity of numbers": GOOD | {"identity": {"run": 3}},
    "no arrays": {name: GOOD[name] for name in ("identity", "log")},
    "enormous arrays": GOOD | {"arrays": [["float64", [2**60, 2**60]], ["int32", []]]},
    "negative shape": GOOD | {"arrays": [["float64", [-2, 3]], ["int32", []]]},
    "objects": GOOD | {"arrays": [["object", [2, 3]], ["int32", []]]},
    "no body": GOOD,
    "pickle": b"\x80\x04\x95cos\nsystem\n",
    "null": b"null",
    "not UTF-8": b"\xff\xfe{}",
}


@pytest.mark.row(35)
@pytest.mark.parametrize("content", CRAFTED.values(), ids=CRAFTED)
def test_crafted_files_with_valid_checksums(tmp_path, content):
    craft(tmp_path / "a", content)
    with pytest.raises(hg.CheckpointError, match=re.escape(str(tmp_path / "a"))):
        load_checkpoint(tmp_path / "a", ARRAYS, IDENTITY)


@pytest.mark.row(35)
def test_a_truth_value_that_is_neither(tmp_path):
    body = b"\x01\x07"
    total = hashlib.sha256(b"bool(2,)" + body).hexdigest()
    like = {"a": np.zeros(2, bool)}
    craft(tmp_path / "a", GOOD | {"arrays": [["bool", [2]]]}, body, total)
    with pytest.raises(hg.CheckpointError, match="truth value"):
        load_checkpoint(tmp_path / "a", like, IDENTITY)


@pytest.mark.row(35)
def test_a_bomb_is_refused_before_memory_is_taken(tmp_path):
    """A sparse file of a terabyte, whose checksums match as far as they are read."""
    craft(tmp_path / "a", GOOD, b"", "0" * 64)
    content = (tmp_path / "a").read_bytes()
    with open(tmp_path / "a", "wb") as file:
        file.write(content[: -checkpoint.TRAILER])
        file.seek(2**40)
        file.write(content[-checkpoint.TRAILER :])
    tracemalloc.start()
    with pytest.raises(hg.CheckpointError, match="not the length of its arrays"):
        load_checkpoint(tmp_path / "a", ARRAYS, IDENTITY)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_description_too_long_to_be_read_is_not_written(tmp_path):
    with pytest.raises(hg.CheckpointError, match="run.ckpt would begin with"):
        save_checkpoint(tmp_path / "run.ckpt", [], {"run": "x" * 2**24})
    assert not list(tmp_path.iterdir())


@pytest.mark.row(35)
def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(hg.CheckpointError, match="not a regular file"):
            load_checkpoint(path, ARRAYS, IDENTITY)


@pytest.mark.row(32)
def test_any_flipped_bit_is_refused(small):
    good = small.read_bytes()
    places = itertools.product(range(len(good)), (1, 32, 128))
    assert not not_refused(small, ((place, flipped(good, *place)) for place in places))


@pytest.mark.row(31)
def test_a_file_truncated_anywhere_is_refused(small):
    good = small.read_bytes()
    assert not not_refused(small, ((n, good[:n]) for n in range(len(good))))


@pytest.mark.row(33)
def test_a_checkpoint_of_another_version_is_refused(saved):
    good = saved.read_bytes()
    saved.write_bytes(good.replace(b"checkpoint 2", b"checkpoint 3", 1))
    with pytest.raises(hg.CheckpointError, match="version"):
        go(saved)


@pytest.mark.row(33)
def test_what_is_kept_belongs_to_the_configuration(saved):
    with pytest.raises(hg.CheckpointError):
        go(saved, keep=lambda record: record.value)


def moved(case):
    return case.replace(hparams=jax.tree.map(lambda h: h + 1, case.hparams))


OTHERS = {
    "outer optimiser": {"search": hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.5))},
    "inner optimiser": {"search": hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.sgd(0.3), 3)), OUTER)},
    "data": {"case": ridge(5)},
    "key": {"key": jax.random.key(1)},
    "hyperparameters at the start": {"case": moved(ridge())},
}


@pytest.mark.row(33)
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(saved, other):
    """A run that goes on under other settings is not the run that the result would name."""
    with pytest.raises(hg.CheckpointError, match="another run; it differs in"):
        go(saved, budget=12, **other)


class Positive:
    """A projection as a callable object: its default name holds its address."""

    def __call__(self, hparams):
        return jax.tree.map(lambda h: jnp.maximum(h, -5.0), hparams)


@pytest.mark.parametrize("make", [Positive, lambda: jax.jit(lambda hparams: hparams)])
def test_the_same_configuration_is_taken_wherever_it_lies_in_memory(tmp_path, make):
    first, second = (hg.GradientSearch(hg.Reverse(INNER), OUTER, projection=make()) for _ in range(2))
    go(tmp_path / "run.ckpt", search=first)
    state, history = go(tmp_path / "run.ckpt", budget=12, search=second)
    assert state.num_steps == 4 and len(history.value) == 4


RESUME = """
import sys
sys.path.insert(0, {folder!r})
import tests.conftest
from tests.hypergrad.ground import test_checkpoint
print(test_checkpoint.go_net({file!r}, 4).num_steps)
"""


def go_net(file, steps):
    search = hg.GradientSearch(hg.DrMAD(hg.OptaxSolver(optax.adam(0.05), 5), warm_start=True), optax.adam(0.1))
    return go(file, 5 * steps, search, net())[0]


@pytest.mark.row(29)
@pytest.mark.slow
def test_another_process_goes_on_with_the_same_bits(tmp_path):
    go_net(tmp_path / "run.ckpt", 2)
    script = RESUME.format(folder=str(ROOT), file=str(tmp_path / "run.ckpt"))
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["4"]
    assert go_net(tmp_path / "run.ckpt", 2).num_steps == 4


def test_a_run_goes_on_from_the_state_it_returned(tmp_path):
    file, case = tmp_path / "run.ckpt", ridge()
    options = {"key": laws.KEY, "checkpoint": file}
    state, _ = go(file)
    state, history = hg.run(SEARCH, case.problem, state, budget=9, **options)
    assert len(history.value) == 3
    again, history = go(file, budget=12)
    assert len(history.value) == again.num_steps == 4
    with pytest.raises(hg.CheckpointError, match="differs in start"):
        hg.run(SEARCH, case.problem, state, budget=12, **options)


def test_a_finished_run_is_not_changed(saved):
    state, history = go(saved)
    again, same = go(saved)
    assert state.num_steps == again.num_steps == len(history.value) == len(same.value) == 2
    np.testing.assert_array_equal(history.value, same.value)
