"""Local response normalisation across channels."""

import jax
import jax.numpy as jnp

Array = jax.Array


def local_response_norm(
    x: Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    divide_by_size: bool = False,
) -> Array:
    """Divides each value by (k + alpha * sum of the squares of its neighbours across channels) ** beta.

    The defaults are those of Krizhevsky, Sutskever, Hinton: "ImageNet Classification with Deep Convolutional
    Neural Networks", 2012, section 3.3.

    Args:
      x: maps (B, H, W, C), or any array whose last axis holds the channels.
      size: channels in the sum: size // 2 before and (size - 1) // 2 after the channel itself; what lies beyond
        the first and last channel is left out.
      alpha, beta, k: the constants of the formula.
      divide_by_size: whether alpha is divided by `size` first, the convention of torch's `LocalResponseNorm` and
        of Caffe (which have k = 1 by default). The paper does not.

    Returns:
      An array like `x`.
    """
    window = (1,) * (x.ndim - 1) + (size,)
    padding = ((0, 0),) * (x.ndim - 1) + ((size // 2, (size - 1) // 2),)
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # squares overflow float16
    neighbours = jax.lax.reduce_window(jnp.square(exact), 0.0, jax.lax.add, window, (1,) * x.ndim, padding)
    return (exact / (k + (alpha / size if divide_by_size else alpha) * neighbours) ** beta).astype(x.dtype)
