"""What happens to uint8 images inside the compiled step: augmentation, resizing, normalisation."""

import jax
import jax.numpy as jnp

from flaxcnn.config import DataConfig

Array = jax.Array


def random_flip(key: Array, image: Array) -> Array:
    """Mirrors an image (H, W, C) left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_crop(key: Array, image: Array, padding: int) -> Array:
    """Pads an image (H, W, C) by black pixels all round and cuts H x W out at a uniformly random place.

    He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2, with padding 4 on CIFAR.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def resize(images: Array, size: int, method: str) -> Array:
    """Brings (B, H, W, C) images to (B, size, size, C): "bilinear", "bicubic", "nearest", or "pad".

    The first two are antialiased when they shrink. "pad" puts the image in the middle of black, the odd pixel on
    the right and below; the image must not be larger than `size`.
    """
    batch, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    if method == "pad":
        top, left = (size - height) // 2, (size - width) // 2
        return jnp.pad(images, ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0)))
    images = images if jnp.issubdtype(images.dtype, jnp.floating) else images.astype(jnp.float32)
    return jax.image.resize(images, (batch, size, size, channels), {"bicubic": "cubic"}.get(method, method))


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype) -> Array:
    """Scales uint8 (or 0..255) images to 0..1, subtracts `mean` and divides by `std`, each one or one a channel."""
    dtype = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(mean, dtype), jnp.asarray(std, dtype)
    return (images.astype(dtype) / 255 - mean) / std


def preprocess(config: DataConfig, images: Array, *, dtype, keys: Array | None = None) -> Array:
    """Turns uint8 images into the network's input: augmented if keys are given, resized, normalised.

    Args:
      config: what to do.
      images: (B, H, W, C) uint8.
      dtype: of the network's computation; the result is float32, or float64 if that is.
      keys: (B,), the random key of each image's augmentation; None leaves it out, as evaluation does.
    """

    def augment(key, image):
        crop_key, flip_key = jax.random.split(key)
        if config.crop_padding:
            image = random_crop(crop_key, image, config.crop_padding)
        if config.flip:
            image = random_flip(flip_key, image)
        return image

    if keys is not None:
        images = jax.vmap(augment)(keys, images)
    if config.image_size is not None:
        images = resize(images, config.image_size, config.resize)
    return normalize(images, config.mean, config.std, dtype)
