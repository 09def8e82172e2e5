"""The axis of members over several devices and several processes.

JAX spreads a computation over the devices on which its arguments lie. So the program stays as it is; only the members
and their own data are placed with `shard_members`, and what all share with `share`:

    mesh = member_mesh()
    members, pseudodata = shard_members((members, pseudodata), mesh)
    ...                                          # the same losses, optimiser, search
    predictions = gather(predictions, num)       # NumPy, in every process, without the padding

With several processes, one per host or per GPU, every process runs this program and calls
`jax.distributed.initialize()` before anything else. Under SLURM (`srun python program.py`), Open MPI and on Cloud TPUs
that finds the others by itself; elsewhere it takes `coordinator_address`, `num_processes` and `process_id`. All
processes must give the same members and data: use the same seeds.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .checks import num_members, positive

AXIS = "members"


def member_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, or those given, along one axis."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def pad_members(members: PyTree, multiple: int) -> PyTree:
    """The members and copies of the last one, up to a multiple of `multiple`."""
    num, multiple = num_members(members), positive(multiple, "multiple")
    rows = np.minimum(np.arange(-(-num // multiple) * multiple), num - 1)
    return jax.tree.map(lambda leaf: leaf[rows] if _is_array(leaf) else leaf, members)


def unpad(members: PyTree, num: int) -> PyTree:
    """The first `num` members: statistics are of these."""
    if not 1 <= num <= num_members(members):
        raise ValueError(f"num must be from 1 to the {num_members(members)} members there are, got {num}")
    return jax.tree.map(lambda leaf: leaf[:num] if _is_array(leaf) else leaf, members)


def shard_members(members: PyTree, mesh: Mesh) -> PyTree:
    """Every array of `members` spread over the mesh along its leading axis, padded where the devices ask for it.

    Give members and their own data in one call or in several; the padding is the same.
    """
    return _place(pad_members(members, mesh.size), NamedSharding(mesh, PartitionSpec(AXIS)))


def share(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every array on every device: hyperparameters, data of all members."""
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


def gather(members: PyTree, num: int | None = None) -> PyTree:
    """All members, or the first `num`, as NumPy arrays in every process."""
    arrays = jax.tree.map(_to_host, members)
    return arrays if num is None else unpad(arrays, num)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array)


def _to_host(leaf: Any) -> Any:
    if not _is_array(leaf):
        return leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    def place(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        values = np.asarray(leaf)  # every process cuts its own part out of the whole
        return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])

    return jax.tree.map(place, tree)
