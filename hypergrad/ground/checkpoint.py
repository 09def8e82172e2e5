"""Checkpoints: the arrays of a state in one file, replaced as a whole, refused if anything does not match.

    hypergrad-jax checkpoint 2\\n
    {"identity": {...}, "arrays": [["float32", [2, 3]], ...], "log": {...}}\\n
    the bytes of the arrays, one after another, in row-major order; a random key by its data
    SHA-256 of the arrays, a space, SHA-256 of all that comes before the arrays and of the first sum, as text, \\n

Nothing is compressed and nothing is executed: the length of the file follows from its second line, and is compared
before an array is allocated.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

import jax
import numpy as np
from jaxtyping import PyTree

from ensembles.ground.axes import is_key

from .files import Path, replacing
from .identity import Identity, difference, to_bytes, to_numpy, update_digest

MAGIC = b"hypergrad-jax checkpoint 2\n"
LONGEST_HEADER = 2**24
TRAILER = 2 * 64 + 2


class CheckpointError(ValueError):
    """A file that is damaged, belongs to another run, or is in use. The message says which."""


def save_checkpoint(path: Path, leaves: list[Any], identity: Identity, log: dict[str, Any] | None = None) -> None:
    """Writes arrays; `identity` describes the run they belong to, `log` its records in another file.

    The write is atomic. *Memory*: the largest leaf, where leaves do not lie on the host already. Each is taken out of
    the list when it is written, so that a list that holds the only reference lets go of it.
    """
    content = {"identity": identity, "arrays": [kind(leaf) for leaf in leaves], "log": log or {}}
    header = MAGIC + json.dumps(content).encode() + b"\n"
    if len(header) > LONGEST_HEADER:
        raise CheckpointError(f"{path} would begin with {len(header)} bytes that describe the run, too many to be read")
    total = hashlib.sha256()
    with replacing(path) as file:
        file.write(header)
        while leaves:
            array = to_numpy(leaves.pop(0))
            update_digest(total, array)
            file.write(to_bytes(array).data)
        file.write(_trailer(header, total.hexdigest()))


def load_checkpoint(path: Path, like: PyTree, identity: Identity) -> tuple[PyTree, Identity, dict[str, Any]]:
    """Returns the arrays in the structure of `like`, on its devices, and the identity and the log saved with them.

    Every part of `identity` must be the same in the file, but `start` may be the state that the file holds.

    **Raises** `CheckpointError` for a damaged file, another version, or another run, naming the parts that differ.
    """
    with refusing(path), open_regular(path) as file:
        return _load(file, path, like, identity)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turns errors on the way through a file that somebody else wrote into a `CheckpointError` with its name."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading. **Raises** `CheckpointError` for a folder, a pipe or a device, of which none ends."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CheckpointError(f"{path} is not a checkpoint: it is not a regular file")
    return open(path, "rb")


def _load(file: BinaryIO, path: Path, like: PyTree, identity: Identity) -> tuple[PyTree, Identity, dict[str, Any]]:
    magic = file.readline(len(MAGIC))
    if magic != MAGIC:
        raise CheckpointError(f"{path} is not a checkpoint of this version: it starts with {magic[:40]!r}")
    header = magic + file.readline(LONGEST_HEADER)
    start, size = file.tell(), os.fstat(file.fileno()).st_size
    file.seek(max(size - TRAILER, 0))
    trailer = file.read(TRAILER)
    total = trailer[:64].decode("ascii", "replace")
    if trailer != _trailer(header, total):
        raise CheckpointError(f"{path} is damaged: the SHA-256 of its header does not match")
    content = json.loads(header[len(MAGIC) :])
    leaves, treedef = jax.tree.flatten(like)
    _compare(path, content["identity"], identity, total)
    if content["arrays"] != [kind(leaf) for leaf in leaves]:
        raise CheckpointError(f"{path} holds other arrays than this run would write")
    if size != start + sum(num_bytes(leaf) for leaf in leaves) + TRAILER:
        raise CheckpointError(f"{path} is damaged: it has {size} bytes, which is not the length of its arrays")
    file.seek(start)
    found, arrays = hashlib.sha256(), []
    for leaf in leaves:
        arrays.append(_read_array(file, path, leaf, found))
    if found.hexdigest() != total:
        raise CheckpointError(f"{path} is damaged: the SHA-256 of its arrays does not match")
    placed = [_placed(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(treedef, placed), content["identity"], content["log"]


def _trailer(header: bytes, total: str) -> bytes:
    return f"{total} {hashlib.sha256(header + total.encode()).hexdigest()}\n".encode()


def _compare(path: Path, there: Identity, here: Identity, total: str) -> None:
    """Raises `CheckpointError` naming the parts of two identities that differ."""
    different = [name for name, part in here.items() if there.get(name) != part]
    if different and not (different == ["start"] and here["start"] == total):
        parts = "\n".join(difference(name, str(there.get(name, "")), here[name]) for name in different)
        raise CheckpointError(f"{path} belongs to another run; it differs in {', '.join(different)}:\n{parts}")


def kind(leaf: Any) -> list[Any]:
    """Returns the type and shape of a leaf, as JSON gives them back."""
    return [str(leaf.dtype), list(leaf.shape)]


def num_bytes(leaf: Any) -> int:
    """Returns the number of bytes that a leaf takes in a file."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return data.size * np.dtype(data.dtype).itemsize


def _read_array(file: BinaryIO, path: Path, leaf: Any, total: Any) -> np.ndarray:
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    array = np.empty(data.shape, data.dtype)
    content = array.reshape(-1).view(np.uint8)
    if file.readinto(content.data) != content.size:  # type: ignore[attr-defined]
        raise CheckpointError(f"{path} is damaged: it ends within an array")
    if array.dtype == bool and content.max(initial=0) > 1:
        raise CheckpointError(f"{path} is damaged: a truth value is neither 0 nor 1")
    update_digest(total, array)
    return array


def _placed(array: np.ndarray, like: Any) -> Any:
    """Converts an array to what `like` is: a random key, a JAX array on the same devices, or a NumPy array."""
    if is_key(like):
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=jax.random.key_impl(like))
    if not isinstance(like, jax.Array):
        return array
    default = len(like.devices()) == 1 and like.devices() == {jax.devices()[0]}
    return jax.numpy.asarray(array) if default else jax.device_put(array, like.sharding)
