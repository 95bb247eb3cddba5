"""Strides, paddings and groups of a convolution."""

from typing import Any, NamedTuple

# Numbers of pixels that are added before and after the rows, and before and after the columns.
Paddings = tuple[tuple[int, int], tuple[int, int]]


class Geometry(NamedTuple):
    """Strides, paddings, groups and precision of a convolution.

    Attributes:
      strides: distance between windows along rows and columns, in pixels.
      paddings: numbers of zeros before and after the rows, and before and after the columns.
      groups: number of channel groups.
      precision: precision of the products on accelerators, see `jax.lax.Precision`.
    """

    strides: tuple[int, int]
    paddings: Paddings
    groups: int = 1
    precision: Any = None

    def is_pointwise(self, kernel_shape: tuple[int, ...]) -> bool:
        """Returns whether each output pixel depends on a single input pixel."""
        return kernel_shape[:2] == (1, 1) and not any(map(any, self.paddings))
