"""A check for JAX versions known to compute wrong results, made once at import."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

RIGHT = "jax>=0.10.1,!=0.10.2,!=0.11.0,!=0.11.1,<0.13"
WRONG = {"0.10.2", "0.11.0", "0.11.1"}


def miscompiles() -> bool:
    """Whether `jit(vmap(r -> sum((M @ r)²)))` with 3-wide rows is wrong here, as on jax 0.10.2 on the CPU."""
    matrix = np.arange(9, dtype=np.float32).reshape(3, 3) / 9
    rows = np.sin(np.arange(3 * 20_001, dtype=np.float32)).reshape(-1, 3)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.asarray(matrix) @ row) ** 2)))(rows)
    return not np.allclose(found, ((rows @ matrix.T) ** 2).sum(1), rtol=1e-4, atol=1e-5)


def warn_if_wrong(version: str = jax.__version__) -> None:
    """Warn once if this JAX is one that the library excludes. Right versions cost nothing."""
    release = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if version not in WRONG and release >= (0, 10) and version != "0.10.0":
        return
    seen = "it computes wrong results on this machine" if miscompiles() else "it is known for wrong or slow results"
    warnings.warn(f"jax {version}: {seen}. Install {RIGHT}", RuntimeWarning, stacklevel=3)
