"""The parts of a run that determine its result, as text by name."""

import hashlib
import importlib.metadata
import re
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ensembles.ground.axes import is_key

from .tree import alike, describe

Identity = dict[str, str]  # a part that differs is named where a checkpoint is refused


def versions() -> Identity:
    """Returns the versions of the packages whose code a step runs."""
    packages = {"hypergrad": "hypergrad-jax", "jax": "jax", "equinox": "equinox", "optax": "optax"}
    return {name: _version(package) for name, package in packages.items()}


def random_bits() -> str:
    """Returns the option that decides which numbers a key draws, and that no program shows."""
    return f"jax_threefry_partitionable={jax.config.jax_threefry_partitionable}"  # type: ignore[attr-defined]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return "unknown"


def devices(tree: PyTree) -> str:
    """Returns the number and kind of the devices that hold the arrays of `tree`: rounding depends on both."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    found: set[jax.Device] = set().union(*(array.sharding.device_set for array in arrays)) or {jax.devices()[0]}
    return f"{len(found)} x {', '.join(sorted({device.device_kind for device in found}))}"


def without_addresses(text: str) -> str:
    """Removes addresses in memory, so that the text is the same in every process."""
    return re.sub(r"( at )?0x[0-9a-f]+", "", text)


def difference(name: str, there: str, here: str, labels: tuple[str, str] = ("there", "here")) -> str:
    """Returns the two texts from shortly before their first different character."""
    same = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0)
    start = max(same - 60, 0)
    lines = zip(labels, (there, here), strict=True)
    return "\n".join(f"  {name} {label}: {text[start : start + 200]}" for label, text in lines)


def refuse_different(name: str, expected: PyTree, found: PyTree, expectation: str) -> None:
    """Raises `ValueError` naming an argument whose structure, shapes or types are not those that are expected."""
    if alike(expected, found):
        return
    wanted, given = describe(expected), describe(found)
    if wanted != given:
        raise ValueError(f"{name} is not {expectation}:\n{difference(name, wanted, given, ('wanted', 'given'))}")


def to_numpy(leaf: Any) -> np.ndarray:
    """Returns the numbers of a leaf on the host, a random key by its data."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def to_bytes(array: np.ndarray) -> np.ndarray:
    """Returns the bytes of an array in row-major order, without a copy where they lie so, for every type of JAX."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def digest(tree: PyTree) -> str:
    """Returns the SHA-256 of all numbers in a pytree, random keys included; other leaves are left out."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array_like)):
        update_digest(total, to_numpy(leaf))
    return total.hexdigest()


def update_digest(total: Any, array: np.ndarray) -> None:
    """Adds an array to a SHA-256: type, shape, bytes."""
    total.update(f"{array.dtype}{array.shape}".encode())
    total.update(to_bytes(array))
