"""Random changes of color. The uint8 results equal those of torchvision on uint8 tensors.

Like torchvision, they truncate to uint8 instead of rounding; see `flaxcnn.data.augment.rounding`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment.rounding import rounded_product, rounded_quotient
from flaxcnn.errors import UserError

Array = jax.Array

# Principal components of the RGB values of ImageNet's training images, scaled to 0..1, as published with
# fb.resnet.torch, with their variances. The columns of IMAGENET_COMPONENTS are the components p1, p2, p3; its rows
# are red, green, blue.
IMAGENET_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
IMAGENET_VARIANCES = np.array([0.2175, 0.0188, 0.0045], np.float32)


def color_jitter(
    key: Array, image: Array, brightness: float, contrast: float, saturation: float, hue: float
) -> Array:
    """Changes brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter.

    Args:
      key: PRNG key.
      image: (H, W, C) uint8 with C of 1 or 3. Saturation and hue do not change an image with one channel.
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 skips the operation.
      contrast: see `brightness`.
      saturation: see `brightness`.
      hue: the shift is uniform in [-hue, hue], where 1 is the full circle of hues; 0 skips the operation.

    Raises:
      UserError: an amount is below 0, `hue` is above 1/2, or the image does not have 1 or 3 channels.
    """
    if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
        raise UserError(f"amounts are {(brightness, contrast, saturation, hue)}; write 0 or more, hue up to 0.5")
    _check_channels(image)
    order_key, factor_key = jax.random.split(key)
    bounds = [(max(0, 1 - amount), 1 + amount) for amount in (brightness, contrast, saturation)] + [(-hue, hue)]
    low, high = np.array(bounds, np.float32).T
    factors = jax.random.uniform(factor_key, (4,), jnp.float32, low, high)
    operations = [
        functools.partial(operation, factor=factor)
        for operation, factor, amount, has_effect in (
            (adjust_brightness, factors[0], brightness, True),
            (adjust_contrast, factors[1], contrast, True),
            (adjust_saturation, factors[2], saturation, image.shape[-1] == 3),
            (adjust_hue, factors[3], hue, image.shape[-1] == 3),
        )
        if amount and has_effect
    ]
    if not operations:
        return image

    def step(image: Array, choice: Array) -> tuple[Array, None]:
        return jax.lax.switch(choice, operations, image), None

    # Under vmap each step computes every operation and selects one. The steps run in a `scan`, because XLA would
    # fuse unrolled steps, and compute the earlier ones again for each use of a pixel in the later ones.
    return jax.lax.scan(step, image, jax.random.permutation(order_key, len(operations)))[0]


def adjust_brightness(image: Array, factor: Array | float) -> Array:
    """Multiplies an image (H, W, C) uint8 by a factor, clips to 0..255, and truncates to uint8."""
    return blend(image, 0, factor, 1 - factor)


def adjust_contrast(image: Array, factor: Array | float) -> Array:
    """Multiplies the difference between an image (H, W, 1 or 3) uint8 and its mean gray value by a factor."""
    return blend(image, mean_gray(image), factor, 1 - factor)


def adjust_saturation(image: Array, factor: Array | float) -> Array:
    """Multiplies the difference between an image (H, W, 1 or 3) uint8 and its grayscale version by a factor.

    An image with one channel stays as it is.
    """
    _check_channels(image)
    return image if image.shape[-1] == 1 else blend(image, to_gray(image), factor, 1 - factor)


def adjust_hue(image: Array, factor: Array | float) -> Array:
    """Shifts the hue of an image, by conversion to HSV and back. An image with one channel stays as it is.

    Args:
      image: (H, W, C) uint8 with C of 1 or 3.
      factor: shift as a fraction of the circle of hues, from -1/2 to 1/2.

    Raises:
      UserError: the image does not have 1 or 3 channels.
    """
    _check_channels(image)
    if image.shape[-1] == 1:
        return image
    # The operations are in torchvision's order, so that they round as torchvision's do.
    red, green, blue = (rounded_quotient(image[..., k].astype(jnp.float32), jnp.float32(255)) for k in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    span = value - jnp.minimum(jnp.minimum(red, green), blue)
    saturation = rounded_quotient(span, jnp.where(span == 0, 1, value))
    divisor = jnp.where(span == 0, 1, span)
    is_red, is_green = value == red, value == green
    plus = rounded_quotient(value - jnp.where(is_red, blue, jnp.where(is_green, red, green)), divisor)
    minus = rounded_quotient(value - jnp.where(is_red, green, jnp.where(is_green, blue, red)), divisor)
    sixths = jnp.where(is_red, 0, jnp.where(is_green, 2, 4)) + plus - minus
    hue = rounded_quotient(sixths, jnp.float32(6)) + 1
    hue = hue - jnp.floor(hue) + factor
    hue = rounded_product(hue - jnp.floor(hue), 6)

    sector = jnp.floor(hue)
    place = hue - sector
    low = value * (1 - saturation)
    falling = value * (1 - rounded_product(saturation, place))
    rising = value * (1 - rounded_product(saturation, 1 - place))
    # In the sectors 0 to 5 of the circle, red is value, falling, low, low, rising, value. Green in sector s is red
    # in sector s + 4, and blue in sector s is red in sector s + 2, modulo 6.
    value, low, falling, rising = (level[..., None] for level in (value, low, falling, rising))
    number = (sector.astype(jnp.int32)[..., None] + np.array([[[0, 4, 2]]])) % 6
    changing = jnp.where(number == 1, falling, jnp.where(number == 4, rising, low))
    turned = jnp.where((number == 0) | (number == 5), value, changing)
    return (turned.clip(0, 1) * 255).astype(jnp.uint8)


def blend(image: Array, other: Array | int, factor: Array | float, rest: Array | float) -> Array:
    """Returns `factor * image + rest * other`, clipped to 0..255 and truncated to uint8.

    `rest` must be 1 - factor. The caller computes it, to control its rounding.
    """
    image, other, factor, rest = (jnp.asarray(array, jnp.float32) for array in (image, other, factor, rest))
    return (rounded_product(factor, image) + rounded_product(rest, other)).clip(0, 255).astype(jnp.uint8)


def to_gray(image: Array) -> Array:
    """Returns the luma (ITU-R BT.601) of an image (H, W, 1 or 3) uint8, truncated, as (H, W, 1) uint8."""
    _check_channels(image)
    if image.shape[-1] == 1:
        return image
    image = image.astype(jnp.float32)
    weighted = [
        rounded_product(jnp.float32(weight), image[..., k]) for k, weight in enumerate((0.2989, 0.587, 0.114))
    ]
    return (weighted[0] + weighted[1] + weighted[2]).astype(jnp.uint8)[..., None]


def mean_gray(image: Array) -> Array:
    """Returns the mean of the grayscale version of an image (H, W, 1 or 3) uint8, () float32."""
    height, width, _ = image.shape
    # Summed as integers, because float32 does not represent the sum of a large image exactly.
    total = to_gray(image).astype(jnp.int32).sum()
    return rounded_quotient(total.astype(jnp.float32), jnp.float32(height * width))


def _check_channels(image: Array) -> None:
    if image.shape[-1] not in (1, 3):
        raise UserError(f"color operation on an image of shape {image.shape}: it must have 1 or 3 channels, last")


def pca_lighting(key: Array, image: Array, std: float = 0.1) -> Array:
    """Adds random noise along the principal components of ImageNet's colors, which imitates a change of lighting.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1. The
    same color, 255 (a1 l1 p1 + a2 l2 p2 + a3 l3 p3), is added to every pixel of the image. The vectors p1, p2, p3
    are the principal components of colors scaled to 0..1, and l1, l2, l3 are their variances, both as published
    with fb.resnet.torch. The numbers a1, a2, a3 are drawn from a normal distribution with mean 0.

    Args:
      key: PRNG key.
      image: (H, W, 3), RGB, uint8 or float, with values from 0 to 255.
      std: standard deviation of a1, a2 and a3.

    Returns:
      (H, W, 3) float32, neither rounded nor clipped, so that values may lie slightly outside of 0..255.

    Raises:
      UserError: the image does not have 3 channels.
    """
    if image.shape[-1] != 3:
        raise UserError(f"lighting of an image of shape {image.shape}: it must have 3 channels, last")
    draws = std * jax.random.normal(key, (3,), jnp.float32)
    # A sum, because accelerators compute a matrix product in lower precision.
    gain = 255 * (IMAGENET_COMPONENTS * IMAGENET_VARIANCES * draws[None]).sum(-1)
    return image.astype(jnp.float32) + gain[None, None]
