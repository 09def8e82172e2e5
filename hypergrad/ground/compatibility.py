"""A check for JAX versions known to compute wrong results, made once at import."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np

RIGHT = "jax>=0.10.1,!=0.10.2,!=0.11.0,!=0.11.1,<0.13"  # the requirement of the package, word by word


def miscompiles() -> bool:
    """Returns whether `jit(vmap(r -> sum((M @ r)²)))` with 3-wide rows is wrong here, as on jax 0.10.2 on the CPU."""
    matrix = np.arange(9, dtype=np.float32).reshape(3, 3) / 9
    rows = np.sin(np.arange(3 * 20_001, dtype=np.float32)).reshape(-1, 3)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.asarray(matrix) @ row) ** 2)))(rows)
    return not np.allclose(found, ((rows @ matrix.T) ** 2).sum(1), rtol=1e-4, atol=1e-5)


def is_wrong(version: str) -> bool:
    """Returns whether `RIGHT` excludes this version by name or as too old; newer ones are not excluded."""
    wrong, oldest = re.findall(r"!=([\d.]+)", RIGHT), re.findall(r">=([\d.]+)", RIGHT)
    return version in wrong or any(_numbers(version) < _numbers(bound) for bound in oldest)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def warn_if_wrong(version: str = jax.__version__) -> None:
    """Warns once if this JAX is one that the library excludes. Right versions cost nothing."""
    if is_wrong(version):
        seen = "it computes wrong results on this machine" if miscompiles() else "it is known for wrong or slow results"
        warnings.warn(f"jax {version}: {seen}. Install {RIGHT}", RuntimeWarning, stacklevel=3)
