"""Integer arithmetic that forgets nothing: a multiplication by a fraction below one that can be undone.

A number is c · 2⁻⁵² units. Of the c that round down to one product c n / d there are ⌊d/n⌋ or ⌈d/n⌉; which of them it
was goes into a second integer, the bits, whose base is that count. Both directions are exact, and the product is right
to the last digit.

**Source**: Maclaurin, Duvenaud, Adams (2015), section 3, has the idea; its algorithm 3 is right to the digits above d
only, which with an accurate fraction n / d would be few.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

FRACTION = 52  # bits behind the point: numbers below 2¹¹ units
RANGE = 2.0**10  # in units: two numbers below it add up without leaving the words
LARGEST = 2**31 - 1  # of numerators and denominators: products of two fit into 64 bits
CAPACITY = 61  # bits in a word


def encode(number: Array, unit: Array) -> Array:
    """Returns the nearest multiple of 2⁻⁵² units, as int64."""
    return jnp.rint(number.astype(jnp.float64) / unit * 2.0**FRACTION).astype(jnp.int64)


def decode(fixed: Array, unit: Array, dtype: jnp.dtype) -> Array:
    """Returns the number, rounded to `dtype`."""
    return (fixed.astype(jnp.float64) / 2.0**FRACTION * unit).astype(dtype)


def unit_for(size: Array) -> Array:
    """Returns the unit, a power of two from 1 on, in which numbers of this size are below a sixteenth of the range."""
    exponent = jnp.ceil(jnp.log2(jnp.maximum(size.astype(jnp.float64), 1) / (RANGE / 16)))
    return 2.0 ** jnp.maximum(exponent, 0)


def ratio(factor: float | Array) -> tuple[Array, Array]:
    """Returns numerator and denominator: for a Python number right to about 2⁻⁶², for an array to 2⁻³²."""
    if isinstance(factor, int | float):
        best = Fraction(factor).limit_denominator(LARGEST)
        return jnp.int64(best.numerator), jnp.int64(best.denominator)
    return jnp.rint(factor.astype(jnp.float64) * LARGEST).astype(jnp.int64), jnp.int64(LARGEST)


def _first_with(product: Array, n: Array, d: Array) -> Array:
    """Returns the lowest c whose c n / d rounds down to `product`: ⌈product · d / n⌉."""
    whole, rest = jnp.divmod(product, n)
    return whole * d - (-rest * d) // n


def multiply(fixed: Array, bits: Array, n: Array, d: Array) -> tuple[Array, Array]:
    """Returns ⌊`fixed` · n / d⌋, and the bits with what the rounding lost."""
    whole, rest = jnp.divmod(fixed, d)
    product = whole * n + rest * n // d
    first = _first_with(product, n, d)
    return product, bits * (_first_with(product + 1, n, d) - first) + fixed - first


def divide(product: Array, bits: Array, n: Array, d: Array) -> tuple[Array, Array]:
    """Inverts `multiply`, to the last bit."""
    first = _first_with(product, n, d)
    bits, offset = jnp.divmod(bits, _first_with(product + 1, n, d) - first)
    return first + offset, bits


def products_per_word(factor: float) -> int:
    """Returns the number of multiplications by `factor` that fit into a word; each adds at most log₂⌈1/factor⌉ bits.

    On average it is less, but training that rests at its end may lose the most at every step.
    """
    return max(int(CAPACITY / math.log2(math.ceil(1 / factor))), 1)


def enabled() -> bool:
    """Returns whether JAX has 64-bit numbers."""
    return jax.dtypes.canonicalize_dtype(np.int64) == np.int64
