"""RandAugment and TrivialAugment, with the operations and magnitudes of torchvision.

Under `jax.vmap` all branches of a conditional are computed for every image. So the 14 operations are implemented by
three that always run: an affine transform of pixel positions, a lookup table of 256 values for each channel, and a
blend with another image. For each operation one of the three does the work, and the other two change nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment.color import blend, mean_gray, to_gray
from flaxcnn.data.augment.draws import coin
from flaxcnn.data.augment.geometry import box_mask
from flaxcnn.data.augment.rounding import rounded_product, rounded_quotient
from flaxcnn.errors import UserError, nearest

Array = jax.Array

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
# Operations whose magnitude is negated with probability 1/2.
SIGNED = OPERATIONS[1:10]
MAGNITUDE_BINS = 31

_LEVELS = np.arange(256, dtype=np.int32)
# Entry n is 255 / n, the factor that stretches a range of n levels to 255, rounded as in torch. Computed on the
# host, because accelerators may round divisions differently.
_STRETCHES = np.float32(1) / np.maximum(_LEVELS, 1).astype(np.float32) * np.float32(255)


def rand_augment(key: Array, image: Array, num_ops: int = 2, magnitude: int = 9) -> Array:
    """Applies `num_ops` operations, drawn uniformly with replacement, at the same magnitude to an image.

    Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019, as
    torchvision's RandAugment with nearest interpolation; uncovered pixels are black.

    Args:
      key: PRNG key.
      image: (H, W, C) uint8 with C of 1 or 3.
      num_ops: number of operations, applied one after another.
      magnitude: strength from 0 to 30, the index of a column of `rand_augment_magnitudes`.

    Raises:
      UserError: the magnitude is out of range, or the image does not have 1 or 3 channels.
    """
    if not 0 <= magnitude < MAGNITUDE_BINS:
        raise UserError(f"magnitude is {magnitude}; it must be from 0 to {MAGNITUDE_BINS - 1}")
    height, width, _ = image.shape
    magnitudes = jnp.asarray(rand_augment_magnitudes(height, width)[:, magnitude])

    def step(image: Array, step_key: Array) -> tuple[Array, None]:
        index_key, sign_key = jax.random.split(step_key)
        operation = jax.random.randint(index_key, (), 0, len(OPERATIONS), jnp.int32)
        return apply_operation(image, operation, _with_sign(sign_key, operation, magnitudes[operation])), None

    # A `scan`, so that the operations are compiled only once.
    return jax.lax.scan(step, image, jax.random.split(key, num_ops))[0]


def trivial_augment_wide(key: Array, image: Array) -> Array:
    """Applies one operation at one magnitude, both drawn uniformly, to an image (H, W, 1 or 3) uint8.

    Mueller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021, as torchvision's
    TrivialAugmentWide with nearest interpolation; uncovered pixels are black.

    Raises:
      UserError: the image does not have 1 or 3 channels.
    """
    index_key, bin_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(index_key, (), 0, len(OPERATIONS), jnp.int32)
    magnitude_bin = jax.random.randint(bin_key, (), 0, MAGNITUDE_BINS, jnp.int32)
    magnitude = jnp.asarray(trivial_augment_magnitudes())[operation, magnitude_bin]
    return apply_operation(image, operation, _with_sign(sign_key, operation, magnitude))


def _with_sign(key: Array, operation: Array, magnitude: Array) -> Array:
    signed = jnp.asarray([name in SIGNED for name in OPERATIONS])[operation]
    return jnp.where(signed & coin(key), -magnitude, magnitude)


def rand_augment_magnitudes(height: int, width: int) -> np.ndarray:
    """Returns the magnitudes of RandAugment for images of a size, (14, 31) float32, one row per operation."""
    reach = 150 / 331  # "AutoAugment", 2018, translates images of 331 pixels by up to 150
    return _magnitudes(shear=0.3, translate=(reach * width, reach * height), rotate=30, enhance=0.9, bits_removed=4)


def trivial_augment_magnitudes() -> np.ndarray:
    """Returns the magnitudes of TrivialAugmentWide, (14, 31) float32, one row per operation."""
    return _magnitudes(shear=0.99, translate=(32, 32), rotate=135, enhance=0.99, bits_removed=6)


def _magnitudes(
    *, shear: float, translate: tuple[float, float], rotate: float, enhance: float, bits_removed: int
) -> np.ndarray:
    fractions = np.linspace(0, 1, MAGNITUDE_BINS)
    largest = {"shear_x": shear, "shear_y": shear, "translate_x": translate[0], "translate_y": translate[1]}
    largest |= {"rotate": rotate, **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), enhance)}
    rows = {name: largest.get(name, 0) * fractions for name in OPERATIONS}
    rows |= {"posterize": 8 - np.rint(bits_removed * fractions), "solarize": 255 * (1 - fractions)}
    return np.stack([rows[name] for name in OPERATIONS]).astype(np.float32)


def apply_operation(image: Array, operation: str | Array, magnitude: Array | float) -> Array:
    """Applies one operation at a given magnitude.

    The result equals that of torchvision on uint8 tensors on a CPU, with one exception: where the source position
    of a rotated pixel lies halfway between two pixels, the last bit of a sine decides, and it may depend on the
    device.

    Args:
      image: (H, W, C) uint8 with C of 1 or 3.
      operation: a name in OPERATIONS, or its index, () int32.
      magnitude: () float32. For shears it is the tangent; for translations pixels, truncated, where positive is
        right and down; for rotations degrees, where positive is counterclockwise; for brightness, color, contrast
        and sharpness the factor minus 1; for posterize the number of bits kept; for solarize the lowest value that
        is inverted. The other operations ignore it.

    Raises:
      UserError: the operation is unknown, or the image does not have 1 or 3 channels.
    """
    if isinstance(operation, str):
        if operation not in OPERATIONS:
            raise UserError(f"unknown operation {operation!r}{nearest(operation, OPERATIONS)}")
        operation = OPERATIONS.index(operation)
    magnitude = jnp.asarray(magnitude, jnp.float32)
    chosen = {name: jnp.asarray(operation) == index for index, name in enumerate(OPERATIONS)}
    image = _apply_table(_table(chosen, magnitude, image), _move(chosen, magnitude, image))
    return _enhance(chosen, magnitude, image)


def _move(chosen: dict[str, Array], magnitude: Array, image: Array) -> Array:
    """Shears, translates or rotates: each pixel takes the value nearest to its source position, or black."""
    height, width, channels = image.shape
    radians = magnitude * (np.pi / 180)
    cosine = jnp.where(chosen["rotate"], jnp.cos(radians), 1)
    sine = jnp.where(chosen["rotate"], jnp.sin(radians), 0)
    shear_x, shear_y = (jnp.where(chosen[name], magnitude, 0) for name in ("shear_x", "shear_y"))
    pixels_x, pixels_y = (
        jnp.where(chosen[name], jnp.trunc(magnitude), 0) for name in ("translate_x", "translate_y")
    )
    # Positions are relative to the center, about which rotations turn. Shears keep the top or left edge in place.
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None] - (width - 1) / 2
    column = _nearest((cosine, shear_x - sine, shear_x * (height / 2) - pixels_x), x, y, width)
    row = _nearest((shear_y + sine, cosine, shear_y * (width / 2) - pixels_y), x, y, height)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # A gather, because a rotation is not a sequence of slices. It moves whole pixels, with all their channels.
    index = jnp.where(inside, row * width + column, 0)
    moved = image.reshape(height * width, channels).at[index].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], moved, jnp.uint8(0))


def _nearest(coefficients: tuple[Array, Array, Array], x: Array, y: Array, size: int) -> Array:
    """Returns the index of the column (or row) nearest to position a x + b y + c, (H, W) int32.

    The operations are in torchvision's order. It matters where a position lies halfway between two pixels, because
    rounding errors decide there. A shear by 0.2 has such positions for a fifth of all pixels.
    """
    a, b, c = (rounded_quotient(coefficient, jnp.float32(size / 2)) for coefficient in coefficients)
    place = rounded_product(x, a) + rounded_product(y, b) + c
    return jnp.rint((rounded_product(place + 1, size) - 1) / 2).astype(jnp.int32)


def _table(chosen: dict[str, Array], magnitude: Array, image: Array) -> Array:
    """Returns the lookup table that maps each old value of each channel to its new value, (256, C) uint8."""
    height, width, channels = image.shape
    levels = jnp.broadcast_to(_LEVELS[:, None], (256, channels))
    bits = jnp.clip(8 - magnitude.astype(jnp.int32), 0, 8)
    # A scatter, because comparing each pixel with each value takes 10 to 100 times as long on a CPU.
    counts = jnp.zeros((256, channels), jnp.int32)
    counts = counts.at[image.reshape(-1, channels), jnp.arange(channels)[None]].add(1, mode="promise_in_bounds")
    present = counts > 0
    lowest, highest = jnp.argmax(present, 0)[None], 255 - jnp.argmax(present[::-1], 0)[None]
    stretched = ((levels - lowest) * jnp.asarray(_STRETCHES)[highest - lowest]).clip(0, 255)
    step = (height * width - jnp.take_along_axis(counts, highest, 0)) // 255
    below = jnp.cumsum(counts, 0) - counts
    equalized = ((below + step // 2) // jnp.maximum(step, 1)).clip(0, 255)

    tables = {
        "brightness": blend(levels, 0, 1 + magnitude, -magnitude),
        "contrast": blend(levels, mean_gray(image), 1 + magnitude, -magnitude),
        "posterize": levels >> bits << bits,
        "solarize": jnp.where(levels >= magnitude, 255 - levels, levels),
        "auto_contrast": jnp.where(highest > lowest, stretched, levels),
        "equalize": jnp.where(step > 0, equalized, levels),
    }
    which = jnp.stack([chosen[name] for name in tables])
    stack = jnp.stack([table.astype(jnp.uint8) for table in tables.values()])
    # A sum with a single nonzero term: XLA would fuse a select into the lookup, and compute the table again for
    # each pixel.
    table = jnp.where(which[:, None, None], stack, jnp.uint8(0)).sum(0, dtype=jnp.uint8)
    return jnp.where(which.any(), table, levels.astype(jnp.uint8))


def _apply_table(table: Array, image: Array) -> Array:
    # A gather from 256 values, because no formula gives the table of equalize.
    return jax.vmap(lambda values, plane: values.at[plane].get(mode="promise_in_bounds"), -1, -1)(table, image)


def _enhance(chosen: dict[str, Array], magnitude: Array, image: Array) -> Array:
    """Blends an image with its grayscale version (color) or with its smoothed version (sharpness)."""
    height, width, channels = image.shape
    applies, other = False, image
    if channels == 3:
        applies, other = chosen["color"], to_gray(image)
    if min(height, width) > 2:
        applies = applies | chosen["sharpness"]
        other = jnp.where(chosen["sharpness"], _smooth(image), other)
    return jnp.where(applies, blend(image, other, 1 + magnitude, -magnitude), image)


def _smooth(image: Array) -> Array:
    """Smooths an image with the kernel [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, rounded; border pixels stay."""
    height, width, _ = image.shape
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = (2 * total + 13) // 26  # rounds to nearest; there are no ties, since 13 is odd
    inner = box_mask(height, width, 1, 1, height - 1, width - 1)[..., None]
    return jnp.where(inner, jnp.pad(smooth, ((1, 1), (1, 1), (0, 0))), image).astype(jnp.uint8)
