"""Random erasing: a random rectangle of an image is set to zero."""

import jax
import jax.numpy as jnp

from flaxcnn.data.augment.geometry import box_mask

Array = jax.Array

ERASING_ATTEMPTS = 10


def random_erasing(
    key: Array,
    image: Array,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Array:
    """Sets a random rectangle of an image to zero, which after normalization is the mean of the dataset.

    Zhong et al., "Random Erasing Data Augmentation", 2017, as torchvision's RandomErasing. The sizes of 10
    rectangles are drawn. The first one that is less high and less wide than the image is erased, at a uniformly
    random place. If there is none, the image stays as it is.

    Args:
      key: PRNG key.
      image: (H, W, C), float.
      probability: probability that a rectangle is erased.
      area: smallest and largest area of the rectangle, as a fraction of the image's area; the area is uniform.
      ratio: smallest and largest ratio of height to width; the logarithm of the ratio is uniform.
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
