"""Augmentation on the device: pure functions of a random key and one image, for `jax.vmap` over keys and images.

Shapes are static and nothing calls back to the host. Where pixels stay uint8, they are those of torchvision's uint8
tensors. It truncates, which shows the last bit of a float; so a product here is rounded before it is added, and a
quotient is rounded correctly, whatever the compiler makes of it. Every draw names its dtype: JAX's defaults are
wider with `jax_enable_x64`, and give other numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError

Array = jax.Array

# Of the RGB values of ImageNet's training images, scaled to 0..1; as published with fb.resnet.torch. The columns of
# the first are the principal components p1, p2, p3, the rows red, green, blue.
IMAGENET_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
IMAGENET_VARIANCES = np.array([0.2175, 0.0188, 0.0045], np.float32)

ERASING_ATTEMPTS = 10


def random_flip(key: Array, image: Array) -> Array:
    """Mirrors an image (H, W, C) left to right with probability 1/2."""
    return _flip_if(coin(key), image)


def alternating_flip(key: Array, image: Array, epoch: Array | int) -> Array:
    """Mirrors an image (H, W, C) left to right in every other epoch; a random half of all images begins mirrored.

    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.6. Any two epochs in succession show
    each image both ways.

    Args:
      key: of the example alone, the same in every epoch.
      image: (H, W, C).
      epoch: () int32, counted from 0.
    """
    return _flip_if(coin(key) ^ (jnp.asarray(epoch) % 2 == 1), image)


def coin(key: Array) -> Array:
    """Returns () bool, true with probability 1/2."""
    return jax.random.bernoulli(key, jnp.float32(0.5))


def _flip_if(condition: Array, image: Array) -> Array:
    return jnp.where(condition, image[:, ::-1], image)


def random_crop(key: Array, image: Array, padding: int, mode: str = "constant") -> Array:
    """Pads an image (H, W, C) all round and cuts H x W out at a uniformly random place.

    He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2, with padding 4 on CIFAR.

    Args:
      key: of the draw.
      image: (H, W, C).
      padding: pixels on each side.
      mode: "constant" pads with black; "reflect" mirrors the image at its outermost pixels.

    Raises:
      UserError: another mode.
    """
    if mode not in ("constant", "reflect"):
        raise UserError(f'mode is {mode!r}; write "constant" or "reflect"')
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1, jnp.int32)
    return _window(padded, row, column, image.shape)


def random_translation(key: Array, image: Array, fraction: float) -> Array:
    """Moves an image (H, W, C) by whole pixels, up to a fraction of its size each way; what is uncovered is black.

    As torchvision's RandomAffine(0, translate=(fraction, fraction)), nearest: a uniform real number up to
    `fraction * H` down or up, and one up to `fraction * W` right or left, each rounded to a whole one.
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


def color_jitter(
    key: Array, image: Array, brightness: float, contrast: float, saturation: float, hue: float
) -> Array:
    """Changes brightness, contrast, saturation and hue, in random order, as torchvision's ColorJitter.

    Args:
      key: of the draws.
      image: (H, W, C) uint8, C of 1 or 3. Saturation and hue leave one channel as it is.
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves the operation out.
      contrast: the same.
      saturation: the same.
      hue: the turn is uniform in [-hue, hue], 1 being the full circle; 0 leaves it out.

    Raises:
      UserError: an amount below 0, a hue above 1/2, or another number of channels.
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

    # Under vmap each step computes every operation and selects one. A loop of the compiled program, because without
    # it XLA fuses the steps, and computes the earlier ones anew for each use of a pixel in the later ones.
    return jax.lax.scan(step, image, jax.random.permutation(order_key, len(operations)))[0]


def adjust_brightness(image: Array, factor: Array | float) -> Array:
    """Multiplies an image (H, W, C) uint8 by a factor, clipped and truncated."""
    return blend(image, 0, factor, 1 - factor)


def adjust_contrast(image: Array, factor: Array | float) -> Array:
    """Multiplies the distance of an image (H, W, 1 or 3) uint8 from its mean grey by a factor."""
    return blend(image, mean_grey(image), factor, 1 - factor)


def adjust_saturation(image: Array, factor: Array | float) -> Array:
    """Multiplies the distance of an image (H, W, 3) uint8 from its greys by a factor; one channel stays."""
    _check_channels(image)
    return image if image.shape[-1] == 1 else blend(image, to_grey(image), factor, 1 - factor)


def adjust_hue(image: Array, factor: Array | float) -> Array:
    """Turns the hue of an image by a share of the circle, through HSV; leaves one channel as it is.

    Args:
      image: (H, W, C) uint8, C of 1 or 3.
      factor: from -1/2 to 1/2.

    Raises:
      UserError: another number of channels.
    """
    _check_channels(image)
    if image.shape[-1] == 1:
        return image
    # The order of the operations, and with it their rounding, is torchvision's.
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
    # Red in the sectors of the circle from 0 to 5: value, falling, low, low, rising, value; green is what red is 4
    # sectors on, blue what it is 2 sectors on.
    value, low, falling, rising = (level[..., None] for level in (value, low, falling, rising))
    number = (sector.astype(jnp.int32)[..., None] + np.array([[[0, 4, 2]]])) % 6
    changing = jnp.where(number == 1, falling, jnp.where(number == 4, rising, low))
    turned = jnp.where((number == 0) | (number == 5), value, changing)
    return (turned.clip(0, 1) * 255).astype(jnp.uint8)


def blend(image: Array, other: Array | int, factor: Array | float, rest: Array | float) -> Array:
    """Returns `factor * image + rest * other`, clipped to 0..255 and truncated to uint8; `rest` is 1 - factor."""
    image, other, factor, rest = (jnp.asarray(array, jnp.float32) for array in (image, other, factor, rest))
    return (rounded_product(factor, image) + rounded_product(rest, other)).clip(0, 255).astype(jnp.uint8)


def to_grey(image: Array) -> Array:
    """Returns the luminance of an image (H, W, 1 or 3) uint8 by ITU-R BT.601, truncated, (H, W, 1) uint8."""
    _check_channels(image)
    if image.shape[-1] == 1:
        return image
    image = image.astype(jnp.float32)
    weighted = [
        rounded_product(jnp.float32(weight), image[..., k]) for k, weight in enumerate((0.2989, 0.587, 0.114))
    ]
    return (weighted[0] + weighted[1] + weighted[2]).astype(jnp.uint8)[..., None]


def mean_grey(image: Array) -> Array:
    """Returns the mean of `to_grey`, () float32."""
    height, width, _ = image.shape
    # Whole numbers, because the sum of a large image is beyond those that float32 holds exactly.
    total = to_grey(image).astype(jnp.int32).sum()
    return rounded_quotient(total.astype(jnp.float32), jnp.float32(height * width))


def _check_channels(image: Array) -> None:
    if image.shape[-1] not in (1, 3):
        raise UserError(f"colours of an image {image.shape}: it must have 1 or 3 channels, last")


def rounded_product(a: Array, b: Array | float) -> Array:
    """Returns a * b, rounded also where a sum follows.

    Compilers make one multiply-add of the two, which leaves out the first rounding. They cannot see that this range
    is never left.
    """
    return jnp.clip(a * b, -1e9, 1e9)


def rounded_quotient(a: Array, b: Array) -> Array:
    """Returns a / b in float32, correctly rounded.

    Compilers divide by a constant through its reciprocal, and the division of accelerators may be wrong in the last
    bits. The remainder puts it right, computed from the exact products of halves of 12 bits, as in Dekker, "A
    floating-point technique for extending the available precision", 1971.
    """
    quotient = a / b
    (q_high, q_low), (b_high, b_low) = _halves(quotient), _halves(b)
    remainder = a - q_high * b_high - q_high * b_low - q_low * b_high - q_low * b_low
    return quotient + remainder / b


def _halves(x: Array) -> tuple[Array, Array]:
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & -4096
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high


def pca_lighting(key: Array, image: Array, std: float = 0.1) -> Array:
    """Adds one draw of noise along the principal components of ImageNet's colours, as if the light changed.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1: each
    pixel gains [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T with a ~ N(0, std). The l are fb.resnet.torch's, which are of
    colours scaled to 0..1; the gain is scaled to 0..255.

    Args:
      key: of the draw.
      image: (H, W, 3) of red, green, blue, uint8 or float on the scale of 0..255.
      std: standard deviation of each a.

    Returns:
      (H, W, 3) float32 on the scale of 0..255, neither rounded nor clipped: it may lie outside by a little.

    Raises:
      UserError: another number of channels.
    """
    if image.shape[-1] != 3:
        raise UserError(f"lighting of an image {image.shape}: it must have 3 channels, last")
    draws = std * jax.random.normal(key, (3,), jnp.float32)
    # A sum rather than a product of matrices, which accelerators compute in fewer bits.
    gain = 255 * (IMAGENET_COMPONENTS * IMAGENET_VARIANCES * draws[None]).sum(-1)
    return image.astype(jnp.float32) + gain[None, None]


def random_erasing(
    key: Array,
    image: Array,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Array:
    """Sets a random rectangle of an image to zero, which after normalisation is the mean of the data set.

    Zhong et al., "Random Erasing Data Augmentation", 2017, as torchvision's RandomErasing: the first of 10 drawn
    rectangles that is smaller than the image both ways, at a uniformly random place; if none is, nothing happens.

    Args:
      key: of the draws.
      image: (H, W, C), float.
      probability: of erasing at all.
      area: smallest and largest share of the image, uniform between them.
      ratio: smallest and largest height by width, its logarithm uniform.
    """
    height, width, _ = image.shape
    uniform = jax.random.uniform(key, (2 * ERASING_ATTEMPTS + 3,), jnp.float32)
    areas = height * width * (area[0] + (area[1] - area[0]) * uniform[:ERASING_ATTEMPTS])
    ratios = ratio[0] * (ratio[1] / ratio[0]) ** uniform[ERASING_ATTEMPTS:-3]
    heights = jnp.rint(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    widths = jnp.rint(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = heights[first], widths[first]
    top = jnp.floor(uniform[-3] * (height - box_height + 1)).astype(jnp.int32)
    left = jnp.floor(uniform[-2] * (width - box_width + 1)).astype(jnp.int32)
    happens = fits[first] & (uniform[-1] < probability)
    erased = happens & box_mask(height, width, top, left, top + box_height, left + box_width)
    return jnp.where(erased[..., None], 0, image)


def box_mask(height: int, width: int, top: Array, left: Array, bottom: Array, right: Array) -> Array:
    """Returns (H, W) bool, true from row `top` to before `bottom` and from column `left` to before `right`."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
