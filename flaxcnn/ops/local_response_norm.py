"""Local response normalisation across channels."""

import functools

import jax
import jax.numpy as jnp

from flaxcnn.ops.primitives import Multilinear

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
      x: maps (B, H, W, C), or any array of two axes or more whose last holds the channels.
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
    denominator = k + alpha * _sum_of_neighbours(jnp.square(x), size=size)
    # A power, in a third of the time: the denominator is positive.
    return denominator, jnp.exp(-beta * jnp.log(denominator))


@_normalise.defjvp
def _(
    size: int, alpha: float, beta: float, k: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # By itself JAX would keep more arrays for the backward pass, and take a logarithm and a power through it.
    (x,), (tangent,) = primals, tangents
    denominator, factor = _factor(x, size, alpha, beta, k)
    through_sums = _sum_of_neighbours(x * tangent, size=size) * (x * factor / denominator)
    return x * factor, tangent * factor - 2 * alpha * beta * through_sums


def _added(x: Array, before: int, after: int) -> Array:
    """Adds shifted copies, in one pass; XLA's windows of a CPU go value by value."""
    channels = x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return functools.reduce(jnp.add, (x[..., start : start + channels] for start in range(before + after + 1)))


def _stock_sum(x: Array, size: int) -> Array:
    return _added(x, size // 2, (size - 1) // 2)


def _summed(result: str, shape: tuple[int, ...], x: Array, size: int) -> Array:
    # A channel is summed by those that have it among their neighbours.
    return _stock_sum(x, size) if result == "output" else _added(x, (size - 1) // 2, size // 2)


_sum_of_neighbours = Multilinear(
    "flaxcnn_sum_of_neighbours", ("input", "output"), stock=_stock_sum, default=_summed, cpu=_summed
)
