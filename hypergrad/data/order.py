"""The order of the rows in an epoch, a keyed bijection that is evaluated one batch at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

WORDS = 4
LONG, SHORT = 4, 16  # rounds; on few rows four leave some orders more likely than others


def new_order(key: Array) -> Array:
    """Returns the words, uint32, from which the order of every epoch is made."""
    words = _mix(jnp.arange(1, WORDS + 1, dtype=jnp.uint32))
    for word in jnp.ravel(jax.random.key_data(key)).astype(jnp.uint32):
        words = _mix(words ^ word) + words
    return words


def epoch_rows(order: Array, t: Array, size: int, rows: int) -> Array:
    """Returns rows `t * size ... (t + 1) * size - 1` of an endless stream in which every row comes once per epoch.

    Epoch e is a permutation of {0 ... rows - 1}, keyed by `order` and e: a Feistel network on the next power of two,
    applied again and again until it leads below `rows`. It has four rounds, and sixteen on at most 256 rows. t is below
    2³¹ and `size` <= `rows`.

    *Cost*: O(size), whatever the number of rows. Nothing is sorted and nothing is stored.

    **Source**: Black and Rogaway (2002), section 4, for the walk; the unbalanced network alternates its halves.
    """
    epoch, first = divmod_of_product(jnp.asarray(t, jnp.uint32), size, rows)
    index = first + jnp.arange(size, dtype=jnp.uint32)
    bits = max((rows - 1).bit_length(), 1)
    keys = _round_keys(order, epoch, bits)
    if rows % size:  # a batch may straddle two epochs
        later = index >= rows
        index = jnp.where(later, index - jnp.uint32(rows), index)
        keys = jnp.where(later, _round_keys(order, epoch + jnp.uint32(1), bits), keys)
    return _permuted(index, keys, rows, bits).astype(jnp.int32)


@partial(jax.jit, static_argnames=("rows", "bits"))  # traced once: it is unrolled, and needed at every step there is
def _permuted(index: Array, keys: Array, rows: int, bits: int) -> Array:
    """Returns the row at every index, both uint32; `keys` have a leading axis of rounds, of an even length."""
    high, low = bits - bits // 2, bits // 2

    @jax.jit
    def network(value: Array) -> Array:
        left, right, widths = value >> low, value & _mask(low), (high, low)
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & _mask(widths[0]))
            widths = widths[::-1]
        return (left << low) | right

    outside = lambda value: jnp.any(value >= rows)
    walk = lambda value: jnp.where(value >= rows, network(value), value)
    # Two more rounds of the walk cost less than asking whether they are needed; at most one row in eight is left then.
    return jax.lax.while_loop(outside, walk, walk(walk(network(index))))


def _round_keys(order: Array, epoch: Array, bits: int) -> Array:
    """Returns the keys of the rounds in one epoch, of shape (rounds, 1)."""
    rounds = jnp.arange(LONG if bits > 8 else SHORT, dtype=jnp.uint32)
    return _mix(order[rounds % WORDS] ^ _mix(epoch * jnp.uint32(SHORT) + rounds))[:, None]


def _mask(bits: int) -> Array:
    return jnp.uint32(2**bits - 1)


def _mix(x: Array) -> Array:
    """Returns a hash of 32 bits, itself a bijection.

    **Source**: Wellons (2018), `lowbias32` of the hash prospector.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def divmod_of_product(t: Array, size: int, rows: int) -> tuple[Array, Array]:
    """Returns `divmod(t * size, rows)` for t below 2³¹ and `size` <= `rows`, where the product may leave 32 bits.

    Quotient and remainder are sums of those of the four bytes of t, from a table: neither the quotient nor the sum of
    two remainders leaves 32 bits.
    """
    bytes_of_t = np.arange(256, dtype=np.int64) << np.arange(0, 32, 8)[:, None]
    table = np.stack(np.divmod(np.minimum(bytes_of_t, 2**31 - 1) * size, rows)).astype(np.uint32)
    digits = jnp.arange(4, dtype=jnp.uint32)
    quotients, remainders = jnp.asarray(table)[:, digits, t >> (8 * digits) & 0xFF]
    quotient, remainder = quotients[0], remainders[0]
    for more, rest in zip(quotients[1:], remainders[1:], strict=True):
        remainder += rest
        over = remainder >= rows
        quotient, remainder = quotient + more + over, jnp.where(over, remainder - jnp.uint32(rows), remainder)
    return quotient, remainder
