"""Checkpoints: arrays in one file, written whole or not at all, refused if anything does not match."""

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, PyTree

MAGIC = b"hypergrad-jax checkpoint 1\n"

Identity = dict[str, str]  # what a run consists of, by name: what differs is named where a checkpoint is refused


class CheckpointError(ValueError):
    """The file is damaged, or belongs to another run. Says which."""


def save_checkpoint(path: str | os.PathLike[str], tree: PyTree, identity: Identity) -> None:
    """Write all arrays of `tree`; `identity` describes the run they belong to.

    The file is complete under its name or not there: it is written beside it, synced and renamed.
    """
    payload = io.BytesIO()
    np.savez(payload, *[np.asarray(leaf) for leaf in jax.tree.leaves(tree)], allow_pickle=False)
    content = json.dumps(identity).encode() + b"\n" + payload.getvalue()
    checksum = hashlib.sha256(content).hexdigest().encode()
    path = os.path.abspath(path)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=os.path.basename(path), suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + checksum + b"\n" + content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_checkpoint(path: str | os.PathLike[str], like: PyTree, identity: Identity) -> tuple[PyTree, Identity]:
    """Arrays in the structure of `like`, and the identity they were saved with. Leading axes may differ.

    Every part of `identity` must be the same in the file, but `start` may be where the file's run has come to, its
    `reached`.

    **Raises** `CheckpointError` for a damaged file, another version, or another run, naming the parts that differ.
    """
    with open(path, "rb") as file:
        magic, checksum, content = file.readline(), file.readline(), file.read()
    if magic != MAGIC:
        raise CheckpointError(f"{path} is not a checkpoint of this version: it starts with {magic[:40]!r}")
    if checksum.decode("ascii", "replace") != hashlib.sha256(content).hexdigest() + "\n":
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not match")
    header, _, body = content.partition(b"\n")
    there = json.loads(header)
    different = [name for name, part in identity.items() if there.get(name) != part]
    if different and not (different == ["start"] and identity["start"] == there.get("reached")):
        parts = "\n".join(_difference(name, there.get(name, ""), identity[name]) for name in different)
        raise CheckpointError(f"{path} belongs to another run; it differs in {', '.join(different)}:\n{parts}")
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        arrays = [archive[name] for name in archive.files]
    leaves, treedef = jax.tree.flatten(like)
    if [(a.dtype, a.ndim) for a in arrays] != [(leaf.dtype, leaf.ndim) for leaf in leaves]:
        raise CheckpointError(f"{path} holds other arrays than this run would write")
    return jax.tree.unflatten(treedef, arrays), there


def _difference(name: str, there: str, here: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0)
    start = max(same - 60, 0)
    return f"  {name} there: {there[start : start + 200]}\n  {name} here:  {here[start : start + 200]}"


def without_addresses(text: str) -> str:
    """The same text in every process."""
    return re.sub(r"( at )?0x[0-9a-f]+", "", text)


def digest(tree: PyTree) -> str:
    """SHA-256 of all numbers in a pytree, random keys included; what is not a number is left out."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array_like)):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def program_digest(function: Callable[..., Any], *args: PyTree) -> str:
    """SHA-256 of what `function` computes: its jaxpr with the constants in it, but without addresses in memory."""
    jaxpr, _, _ = eqx.filter_make_jaxpr(function)(*args)
    return hashlib.sha256(f"{without_addresses(str(jaxpr))} {digest(_constants(jaxpr))}".encode()).hexdigest()


def _constants(jaxpr: ClosedJaxpr | Jaxpr) -> list[Array]:
    """Arrays that a program holds, in the functions it calls too."""
    found = list(jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else []
    for equation in jaxpr.eqns:
        for part in jax.tree.leaves(list(equation.params.values())):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                found += _constants(part)
    return found
