"""Replicas over devices and processes, padded, are replicas on one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import ensembles as ens
from hypergrad.testing.tolerances import assert_close

from tests.ensembles import process as training_process
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def alone():
    return training_process.train()


def check(found, alone):
    assert set(found) == set(alone)
    for name in alone:
        assert found[name].shape == alone[name].shape and np.all(np.isfinite(alone[name]))
        assert_close(found[name], alone[name], "gradient")  # three hypergradients have moved what came after them
    assert np.ptp(alone["hparams"]) > 1e-4


@pytest.mark.row(12)
@pytest.mark.slow
def test_replicas_over_four_devices_are_those_on_one(alone):
    mesh = ens.replica_mesh()
    assert mesh.size == 4 and mesh.axis_types == (AxisType.Auto,)
    check(training_process.train(mesh), alone)  # 5 replicas on 4 devices: padded


@pytest.mark.slow
@pytest.mark.row(12)
def test_replicas_over_two_processes_are_those_on_one(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2")
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    script = str(Path(training_process.__file__))
    outputs = [tmp_path / f"{i}.npz" for i in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, script, port, str(i), str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, out in enumerate(outputs)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    for out in outputs:
        check(dict(np.load(out)), alone)


def tree(num=5):
    return {
        "model": ens.init_replicas(lambda key: eqx.nn.MLP(2, 1, 3, 1, key=key), jax.random.key(0), num),
        "keys": ens.replica_keys(jax.random.key(1), num),
        "counts": np.arange(num),
        "name": "text",
    }


@pytest.mark.slow
def test_every_array_is_spread_and_comes_back():
    mesh = ens.replica_mesh()
    spread = ens.shard_replicas(tree(), mesh)
    for leaf in jax.tree.leaves(eqx.filter(spread, eqx.is_array)):
        assert leaf.shape[0] == 8
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}
        assert len(leaf.sharding.device_set) == 4
    assert spread["counts"].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    np.testing.assert_array_equal(
        jax.random.key_data(spread["keys"])[:5], jax.random.key_data(ens.replica_keys(jax.random.key(1), 5))
    )
    back = ens.gather({"model": spread["model"], "counts": spread["counts"]}, 5)
    np.testing.assert_array_equal(back["model"].layers[0].weight, tree()["model"].layers[0].weight)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(eqx.filter(back, eqx.is_array)))
    for leaf in jax.tree.leaves(eqx.filter(ens.replicate_on_devices(tree(), mesh), eqx.is_array)):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 4


def test_training_stays_spread():
    """Nothing is collected on one device behind the user's back."""
    mesh = ens.replica_mesh()
    spread = ens.shard_replicas(jnp.ones((8, 3)), mesh)
    step = jax.jit(lambda w: w - 0.1 * jax.grad(lambda w: jnp.sum(jax.vmap(lambda w: jnp.sum(w**4))(w)))(w))
    assert {shard.data.shape for shard in step(spread).addressable_shards} == {(2, 3)}
    assert "all-gather" not in step.lower(spread).compile().as_text()


@pytest.mark.row(13)
def test_padded_ensembles_are_unpadded_ones():
    padded = ens.pad_replicas({"a": jnp.arange(3)}, 4)
    assert padded["a"].tolist() == [0, 1, 2, 2]
    assert ens.unpad(padded, 3)["a"].tolist() == [0, 1, 2]
    assert ens.pad_replicas({"a": jnp.arange(4)}, 4)["a"].tolist() == [0, 1, 2, 3]


def test_chunks_of_spread_replicas_change_nothing():
    replicas = jnp.arange(8.0)
    expected = ens.chunked(jnp.sin, 8)(replicas)
    for chunk in (1, 3, "auto"):
        assert_close(ens.chunked(jnp.sin, chunk)(ens.shard_replicas(replicas, ens.replica_mesh())), expected)


def test_sharding_refuses_bad_input_by_name():
    with pytest.raises(ValueError, match="multiple must be"):
        ens.pad_replicas(jnp.ones(3), 0)
    with pytest.raises(ValueError, match="num must be from 1 to the 3 replicas"):
        ens.unpad(jnp.ones(3), 4)
    with pytest.raises(ValueError, match="same leading axis"):
        ens.shard_replicas((jnp.ones(3), jnp.ones(2)), ens.replica_mesh())
