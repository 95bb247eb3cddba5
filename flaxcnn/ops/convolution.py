"""Convolution of NHWC maps, on each platform by the way that is quick there; chosen when a program is lowered."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from flaxcnn.ops import cpu_convolution
from flaxcnn.ops.geometry import Geometry, is_wide, stock, transposed, unstrided

Array = jax.Array


def convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """Convolves as `jax.lax.conv_general_dilated` does, whose arguments it takes; for `flax.linen.Conv`.

    Reverse-mode gradients of any order; no forward mode. What differs from the original is the order of summation.

    Args:
      x: maps (B, H, W, C).
      kernel: (height, width, C / groups, features).
      window_strides: of rows and columns.
      padding: zeros before and after rows and columns.
      lhs_dilation, rhs_dilation: 1, as nothing here is dilated.
      dimension_numbers: NHWC and HWIO, as linen has them.
      feature_group_count: groups of channels that do not see each other.
      precision: of the product on accelerators.

    Returns:
      (B, H', W', features).

    Raises:
      ValueError: maps of another rank, or dilation.
    """
    if x.ndim != 4 or {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} != {1}:
        raise ValueError(f"convolution takes maps (batch, height, width, channels) undilated, got {x.shape}")
    paddings = tuple((low, high) for low, high in padding)
    geometry = Geometry(tuple(window_strides), paddings, feature_group_count, precision)
    return _convolve(*_equally_varying(x, kernel), geometry)


def _equally_varying(*arrays: Array) -> list[Array]:
    """Marks arrays that are alike on all devices of a `shard_map` as varying if another one varies.

    JAX's own operations do so themselves, so that a gradient by a parameter is summed over the devices.
    """
    axes = [getattr(jax.typeof(x), "mat", jax.typeof(x)) for x in arrays]
    axes = [frozenset(getattr(each, "varying", None) or getattr(each, "vma", ())) for each in axes]
    missing = [tuple(frozenset().union(*axes) - each) for each in axes]
    return [jax.lax.pcast(x, names, to="varying") if names else x for x, names in zip(arrays, missing, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    by_cpu = cpu_convolution.convolve if _is_for_cpu(x) else stock
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(by_cpu, geometry=geometry),
        default=functools.partial(by_accelerator, geometry=geometry),
    )


def _forward(x: Array, kernel: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, geometry), (x, kernel)


def _backward(geometry: Geometry, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    def by_input(x: Array, kernel: Array, gradient: Array, convolve=by_accelerator) -> Array:
        return transposed(lambda x: convolve(x, kernel, geometry), x, gradient)

    def by_kernel(x: Array, kernel: Array, gradient: Array, convolve=by_accelerator) -> Array:
        return transposed(lambda kernel: convolve(x, kernel, geometry), kernel, gradient)

    if _is_for_cpu(saved[0]):
        cpu_by_input = functools.partial(cpu_convolution.input_gradient, geometry=geometry)
        cpu_by_kernel = functools.partial(cpu_convolution.kernel_gradient, geometry=geometry)
    else:
        cpu_by_input, cpu_by_kernel = (functools.partial(by, convolve=stock) for by in (by_input, by_kernel))
    return (
        jax.lax.platform_dependent(*saved, gradient, cpu=cpu_by_input, default=by_input),
        jax.lax.platform_dependent(*saved, gradient, cpu=cpu_by_kernel, default=by_kernel),
    )


_convolve.defvjp(_forward, _backward)


def _is_for_cpu(x: Array) -> bool:
    """Returns whether CPUs have quicker ways than JAX for such maps: not in half precision, not of one pixel."""
    return is_wide(x) and x.shape[1:3] != (1, 1)


def by_accelerator(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Folds the pixels under a stride into the channels, if these are few: matrix units take them by eights.

    A 7x7 convolution at stride 2 of 3 channels becomes one of 4x4 at stride 1 of 12 channels.
    """
    if kernel.shape[2] > 4 or geometry.groups > 1 or min(geometry.strides) == 1 or geometry.is_pointwise(kernel):
        return stock(x, kernel, geometry)
    return unstrided(x, kernel, geometry)
