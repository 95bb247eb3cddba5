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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _normalise(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    return x * _factor(x, size, alpha, beta, k)[1]


def _factor(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """Returns the denominator and what each value is multiplied with."""
    denominator = k + alpha * _sum_of_neighbours(jnp.square(x), size)
    # A power, in a third of the time: the denominator is positive.
    return denominator, jnp.exp(-beta * jnp.log(denominator))


@_normalise.defjvp
def _(
    size: int, alpha: float, beta: float, k: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # By itself JAX would keep more arrays for the backward pass, and take a logarithm and a power through it.
    (x,), (tangent,) = primals, tangents
    denominator, factor = _factor(x, size, alpha, beta, k)
    through_sums = _sum_of_neighbours(x * tangent, size) * (x * factor / denominator)
    return x * factor, tangent * factor - 2 * alpha * beta * through_sums


def _sum_of_neighbours(x: Array, size: int) -> Array:
    """Adds shifted copies, in one pass; XLA's windows of a CPU go value by value."""
    channels = x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)])
    return sum(x[..., start : start + channels] for start in range(size))
