"""Products and quotients in float32 that are rounded as IEEE 754 specifies, whatever the compiler optimizes.

torchvision computes colors in float32 and truncates to uint8, so the last bit of a float can change a pixel. To
reproduce its pixels, each product must be rounded before it is added, and each quotient must be the nearest float.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def rounded_product(a: Array, b: Array | float) -> Array:
    """Returns a * b, rounded to float32 before any addition. The absolute value must be at most 1e9.

    Compilers fuse a product and a sum into one multiply-add, which does not round the product. The clip prevents
    that, because compilers do not know that the values are always in its range.
    """
    return jnp.clip(a * b, -1e9, 1e9)


def rounded_quotient(a: Array, b: Array) -> Array:
    """Returns a / b in float32, correctly rounded.

    Compilers replace a division by a constant by a product with its reciprocal, and divisions on accelerators may
    be wrong in the last bits. Here the quotient is corrected by its remainder, which is computed from the exact
    products of 12-bit halves, as in Dekker, "A floating-point technique for extending the available precision",
    1971.
    """
    quotient = a / b
    (q_high, q_low), (b_high, b_low) = _halves(quotient), _halves(b)
    remainder = a - q_high * b_high - q_high * b_low - q_low * b_high - q_low * b_low
    return quotient + remainder / b


def _halves(x: Array) -> tuple[Array, Array]:
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & -4096
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high
