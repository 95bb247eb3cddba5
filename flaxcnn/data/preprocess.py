"""What happens to uint8 images inside the compiled step: augmentation, resizing, normalisation."""

import jax
import jax.numpy as jnp

from flaxcnn.config import DataConfig

Array = jax.Array


def random_flip(key: Array, images: Array) -> Array:
    """Mirrors each of (B, H, W, C) images left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def random_crop(key: Array, images: Array, padding: int) -> Array:
    """Pads each of (B, H, W, C) images by black pixels all round and cuts H x W out at a uniformly random place.

    He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2, with padding 4 on CIFAR.
    """
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


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


def preprocess(config: DataConfig, images: Array, *, dtype, key: Array | None = None) -> Array:
    """Turns uint8 images into the network's input: augmented if a key is given, resized, normalised.

    Args:
      config: what to do.
      images: (B, H, W, C) uint8.
      dtype: of the network's computation; the result is float32, or float64 if that is.
      key: random key of the augmentation; None leaves it out, as evaluation does.
    """
    if key is not None:
        crop_key, flip_key = jax.random.split(key)
        if config.crop_padding:
            images = random_crop(crop_key, images, config.crop_padding)
        if config.flip:
            images = random_flip(flip_key, images)
    if config.image_size is not None:
        images = resize(images, config.image_size, config.resize)
    return normalize(images, config.mean, config.std, dtype)
