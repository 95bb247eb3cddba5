"""Local response normalisation across channels."""

import functools

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
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # squares overflow float16
    return _normalise(exact, size, alpha / size if divide_by_size else alpha, beta, k).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _normalise(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    return _normalise_forward(x, size, alpha, beta, k)[0]


def _normalise_forward(x: Array, size: int, alpha: float, beta: float, k: float):
    denominator = k + alpha * _sum_of_neighbours(jnp.square(x), size // 2, (size - 1) // 2)
    # A power, in a third of the time: the denominator is positive.
    factor = jnp.exp(-beta * jnp.log(denominator))
    return x * factor, (x, denominator, factor)


def _normalise_backward(size: int, alpha: float, beta: float, k: float, saved: tuple[Array, ...], gradient: Array):
    x, denominator, factor = saved
    through_sums = _sum_of_neighbours(gradient * x * factor / denominator, (size - 1) // 2, size // 2)
    return (gradient * factor - 2 * alpha * beta * x * through_sums,)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _sum_of_neighbours(x: Array, before: int, after: int) -> Array:
    """Adds shifted copies, in one pass; XLA's windows of a CPU go value by value."""
    channels = x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return sum(x[..., start : start + channels] for start in range(before + after + 1))
