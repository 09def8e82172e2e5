"""The axis of replicas over several devices and several processes.

JAX spreads a computation over the devices that hold its arguments. So the program stays as it is: `shard_replicas`
places the replicas and their own data, `replicate_on_devices` the arrays that all replicas share.

    mesh = replica_mesh()
    replicas, pseudodata = shard_replicas((replicas, pseudodata), mesh)
    ...                                          # the same losses, optimiser, search
    predictions = gather(predictions, num)       # NumPy, in every process, without the padding

With several processes, one per host or per GPU, every process runs this program and calls
`jax.distributed.initialize()` before anything else. Under SLURM (`srun python program.py`), Open MPI and on Cloud TPUs
the call finds the others by itself; elsewhere it takes `coordinator_address`, `num_processes` and `process_id`. All
processes must give the same replicas and data: use the same seeds.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .checks import LARGEST, checked, instance, integer, is_key, num_replicas, refuse_unknown, several
from .ground.memory import refuse_too_large

AXIS = "replicas"
MESH = instance("mesh", Mesh, "a mesh, as replica_mesh returns it")


@checked(several("devices", jax.Device, "a list of jax devices", least=1, optional=True))
def replica_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of all devices of all processes, or of those given, along one axis.

    **Example**

        >>> ens.replica_mesh(jax.devices()[:1]).axis_names
        ('replicas',)
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


@checked(integer("multiple", least=1))
def pad_replicas(replicas: PyTree, multiple: int) -> PyTree:
    """Returns the replicas and copies of the last one, up to a multiple of `multiple`.

    **Example**

        >>> ens.pad_replicas(jnp.arange(3), multiple=2)
        Array([0, 1, 2, 2], dtype=int32)
    """
    num = num_replicas(replicas)
    refuse_too_large(
        sum(leaf.nbytes for leaf in jax.tree.leaves(replicas) if _is_array(leaf)) / num * multiple, "multiple"
    )
    rows = np.minimum(np.arange(-(-num // multiple) * multiple), num - 1)
    return jax.tree.map(lambda leaf: leaf[rows] if _is_array(leaf) else leaf, replicas)


@checked(integer("num", least=-LARGEST))
def unpad(replicas: PyTree, num: int) -> PyTree:
    """Returns the first `num` replicas, without padding.

    **Example**

        >>> ens.unpad(jnp.arange(4), 3)
        Array([0, 1, 2], dtype=int32)
    """
    if not 1 <= num <= num_replicas(replicas):
        raise ValueError(f"num must be from 1 to the {num_replicas(replicas)} replicas there are, got {num}")
    return jax.tree.map(lambda leaf: leaf[:num] if _is_array(leaf) else leaf, replicas)


@checked(MESH)
def shard_replicas(replicas: PyTree, mesh: Mesh) -> PyTree:
    """Spreads every array of `replicas` over the mesh along its leading axis, padded to a multiple of the devices.

    Replicas and their own data may come in one call or in several; the padding is the same.

    **Example**

        >>> mesh = ens.replica_mesh(jax.devices()[:1])
        >>> ens.shard_replicas(jnp.zeros((4, 2)), mesh).sharding.spec
        P('replicas',)
    """
    return _place(pad_replicas(replicas, mesh.size), NamedSharding(mesh, PartitionSpec(AXIS)))


@checked(MESH)
def replicate_on_devices(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every array to every device: hyperparameters, and data that all replicas share."""
    refuse_unknown(tree, "tree")
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


@checked(integer("num", least=1, optional=True))
def gather(replicas: PyTree, num: int | None = None) -> PyTree:
    """Returns all replicas, or the first `num`, as NumPy arrays in every process.

    **Example**

        >>> ens.gather(jnp.arange(4), 3)
        array([0, 1, 2], dtype=int32)
    """
    refuse_unknown(replicas, "replicas")
    arrays = jax.tree.map(_to_host, replicas)
    return arrays if num is None else unpad(arrays, num)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array)


def _to_host(leaf: Any) -> Any:
    if not _is_array(leaf):
        return leaf
    if is_key(leaf):
        return leaf  # NumPy has no keys
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    def put(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        if is_key(leaf):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        values = np.asarray(leaf)  # every process cuts its own part out of the whole
        return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])

    return jax.tree.map(put, tree)
