"""Local response normalization across channels."""

import functools

import jax
import jax.numpy as jnp

from flaxcnn.ops.multilinear import Multilinear

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
    """Divides each value by (k + alpha * sum) ** beta, summing the squares of the neighboring channels.

    The defaults are those of Krizhevsky, Sutskever, Hinton: "ImageNet Classification with Deep Convolutional
    Neural Networks", 2012, section 3.3.

    Args:
      x: feature maps (B, H, W, C), or any array of two or more axes with the channels on the last axis.
      size: number of channels in the sum: the channel itself, size // 2 channels before and (size - 1) // 2 after
        it. Fewer are summed at the first and last channels.
      alpha, beta, k: constants of the formula.
      divide_by_size: whether alpha is divided by `size` first. The paper does not divide; torch's
        `LocalResponseNorm` and Caffe do (and have k = 1 by default).

    Returns:
      An array with the shape and dtype of `x`.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # squares overflow float16
    return _normalize(wide, size, alpha / size if divide_by_size else alpha, beta, k).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _normalize(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    return x * _factor(x, size, alpha, beta, k)[1]


def _factor(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """Returns k + alpha * sum, and its power -beta, by which `local_response_norm` multiplies each value."""
    denominator = k + alpha * _sum_of_neighbors(jnp.square(x), size=size)
    # Equals denominator ** -beta, because the denominator is positive, but takes a third of the time.
    return denominator, jnp.exp(-beta * jnp.log(denominator))


@_normalize.defjvp
def _(
    size: int, alpha: float, beta: float, k: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # JAX's derivative would keep more arrays for the backward pass, and compute a logarithm and a power there.
    (x,), (tangent,) = primals, tangents
    denominator, factor = _factor(x, size, alpha, beta, k)
    through_sums = _sum_of_neighbors(x * tangent, size=size) * (x * factor / denominator)
    return x * factor, tangent * factor - 2 * alpha * beta * through_sums


def _windowed_sum(x: Array, before: int, after: int) -> Array:
    """Sums each channel with `before` channels before and `after` channels after it.

    It adds shifted copies, which XLA fuses into one pass. On CPUs, XLA's window sums process one value at a time.
    """
    channels = x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return functools.reduce(jnp.add, (x[..., start : start + channels] for start in range(before + after + 1)))


def _stock_sum(x: Array, size: int) -> Array:
    return _windowed_sum(x, size // 2, (size - 1) // 2)


def _summed(result: str, shape: tuple[int, ...], x: Array, size: int) -> Array:
    # The gradient of a channel sums over the channels of which it is a neighbor: before and after are swapped.
    return _stock_sum(x, size) if result == "output" else _windowed_sum(x, (size - 1) // 2, size // 2)


_sum_of_neighbors = Multilinear(
    "flaxcnn_sum_of_neighbors", ("input", "output"), stock=_stock_sum, default=_summed, cpu=_summed
)
