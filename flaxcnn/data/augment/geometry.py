"""Random flips, crops and translations of one image (H, W, C), and boxes within it."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment.draws import coin
from flaxcnn.errors import UserError

Array = jax.Array


def random_flip(key: Array, image: Array) -> Array:
    """Mirrors an image (H, W, C) left to right with probability 1/2."""
    return _flip_if(coin(key), image)


def alternating_flip(key: Array, image: Array, epoch: Array | int) -> Array:
    """Mirrors an image (H, W, C) left to right in either all even or all odd epochs, chosen at random.

    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.6. Any two consecutive epochs show an
    image once mirrored and once not.

    Args:
      key: PRNG key of the example, which must be equal in all epochs.
      image: (H, W, C).
      epoch: () int32, counted from 0.
    """
    return _flip_if(coin(key) ^ (jnp.asarray(epoch) % 2 == 1), image)


def _flip_if(condition: Array, image: Array) -> Array:
    return jnp.where(condition, image[:, ::-1], image)


def random_crop(key: Array, image: Array, padding: int, mode: str = "constant") -> Array:
    """Pads an image (H, W, C) on all sides, and crops H x W pixels at a uniformly random place.

    He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2, with padding 4 on CIFAR.

    Args:
      key: PRNG key.
      image: (H, W, C).
      padding: pixels on each side.
      mode: "constant" pads with black; "reflect" mirrors the image at its outermost pixels.

    Raises:
      UserError: `mode` is neither "constant" nor "reflect".
    """
    if mode not in ("constant", "reflect"):
        raise UserError(f'mode is {mode!r}; write "constant" or "reflect"')
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1, jnp.int32)
    return _window(padded, row, column, image.shape)


def random_translation(key: Array, image: Array, fraction: float) -> Array:
    """Shifts an image (H, W, C) by whole pixels, up to a fraction of its size each way; uncovered pixels are black.

    Equals torchvision's RandomAffine(0, translate=(fraction, fraction)) with nearest interpolation. The vertical
    shift is uniform in [-fraction * H, fraction * H], and the horizontal shift in [-fraction * W, fraction * W].
    Both are rounded to integers.
    """
    height, width, _ = image.shape
    reach = np.array([fraction * height, fraction * width])
    limits = np.rint(reach).astype(np.int32)
    shift = jnp.rint(jax.random.uniform(key, (2,), jnp.float32, -reach, reach)).astype(jnp.int32)
    padded = jnp.pad(image, ((limits[0], limits[0]), (limits[1], limits[1]), (0, 0)))
    row, column = limits - shift
    return _window(padded, row, column, image.shape)


def _window(padded: Array, row: Array, column: Array, shape: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_slice(padded, (row, column, jnp.zeros_like(row)), shape)


def box_mask(height: int, width: int, top: Array, left: Array, bottom: Array, right: Array) -> Array:
    """Returns the mask of a box, (H, W) bool, true for rows in [top, bottom) and columns in [left, right).

    The edges of the box may lie outside the image.
    """
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
