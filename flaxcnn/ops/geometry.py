"""Where the windows of a convolution lie, and JAX's own convolution over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
# Pixels before and after, of the rows and of the columns.
Paddings = tuple[tuple[int, int], tuple[int, int]]


class Geometry(NamedTuple):
    """What a convolution needs besides its arrays.

    Attributes:
      strides: of the rows and of the columns.
      paddings: zeros before and after the rows and the columns.
      groups: groups of channels that do not see each other.
      precision: of the products on accelerators.
    """

    strides: tuple[int, int]
    paddings: Paddings
    groups: int = 1
    precision: Any = None

    def is_pointwise(self, kernel: Array) -> bool:
        """Returns whether each output sees one pixel."""
        return kernel.shape[:2] == (1, 1) and not any(map(any, self.paddings))


def stock(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves maps (B, H, W, C) with a kernel (height, width, C / groups, features) as JAX does."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.paddings,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def transposed(linear: Callable[[Array], Array], argument: Array, gradient: Array) -> Array:
    """Returns the gradient by the argument of a linear function."""
    return jax.vjp(linear, argument)[1](gradient)[0]
