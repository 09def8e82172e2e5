"""Data of the replicas: drawn from a covariance, or resampled."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .checks import KEY, array, checked, factor, has_shape, integer
from .ground.memory import refuse_too_large
from .replicas import replica_keys


@checked(KEY, array("data"), factor(), integer("num", least=1))
def monte_carlo(key: Array, data: ArrayLike, factor: ArrayLike, num: int) -> Array:
    """Returns `num` fluctuations of N measurements, of shape (num, N):

        D⁽ʳ⁾ = D + L z⁽ʳ⁾,    z ~ N(0, I)

    The spread of models fitted to them is the error that the measurements leave.

    **Arguments**: `data` D of shape (N,); `factor` L of their covariance, from `cholesky`. Row r does not depend on
    `num`.

    **Source**: Giele, Keller, Kosower (2001); Del Debbio et al. (2005).

    **Example**

        >>> ens.monte_carlo(key, data, factor, 100).std(0).round(2)
        Array([0.11, 0.11, 0.13, 0.13], dtype=float32)
    """
    data, lower = jnp.asarray(data), jnp.asarray(factor)
    has_shape(data, (None,), "data")
    has_shape(lower, (len(data), len(data)), "factor", "data")
    refuse_too_large(2 * 8 * data.size * num, "num")
    draw = lambda key: jax.random.normal(key, data.shape, data.dtype)
    return data + jax.vmap(draw)(replica_keys(key, num)) @ lower.T


@checked(KEY, integer("num_rows", least=1), integer("num", least=1))
def bootstrap_weights(key: Array, num_rows: int, num: int) -> Array:
    """Returns the counts of every row in each of `num` samples with replacement, of shape (num, num_rows).

    As weights of the rows in a loss the counts are the bootstrap, without a copy of the data per replica.

    **Source**: Efron (1979).

    **Example**

        >>> ens.bootstrap_weights(key, 4, num=2).sum(1)
        Array([4, 4], dtype=int32)
    """
    rows = num_rows
    refuse_too_large(2 * 4 * rows * num, "num_rows" if rows > num else "num")

    def draw(key: Array) -> Array:
        chosen = jax.random.randint(key, (rows,), 0, rows)
        return jnp.zeros(rows, jnp.int32).at[chosen].add(1)

    return jax.vmap(draw)(replica_keys(key, num))
