"""Preprocessing inside the compiled step, from uint8 images to the model input, in training and evaluation."""

import jax
import jax.numpy as jnp

from flaxcnn.config import AugmentConfig, DataConfig, EvaluationConfig
from flaxcnn.config.geometry import EvaluationGeometry
from flaxcnn.data.augment import color, erasing, geometry, policies

Array = jax.Array


def resize(images: Array, size: int, method: str) -> Array:
    """Resizes images (B, H, W, C) to (B, size, size, C) by "bilinear", "bicubic", "nearest" or "pad".

    "bilinear" and "bicubic" antialias when they shrink. "pad" centers the image on black; the image must not be
    larger than `size`, and an odd margin has its extra pixel on the right or at the bottom. Images that are padded,
    or already have the size, keep their dtype. Otherwise integers become float32.
    """
    batch, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    if method == "pad":
        top, left = (size - height) // 2, (size - width) // 2
        return jnp.pad(images, ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0)))
    images = images if jnp.issubdtype(images.dtype, jnp.floating) else images.astype(jnp.float32)
    shape = (batch, size, size, channels)
    if method == "nearest":
        return jax.image.resize(images, shape, method)
    # `jax.image.resize` would compute its weights in float64 with `jax_enable_x64`.
    scale = jnp.array([size / height, size / width], jnp.float32)
    kernel = {"bilinear": "linear", "bicubic": "cubic"}[method]
    return jax.image.scale_and_translate(images, shape, (1, 2), scale, jnp.zeros(2, jnp.float32), kernel)


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype) -> Array:
    """Scales images (..., C) from 0..255 to 0..1, subtracts `mean` and divides by `std`.

    `mean` and `std` have one value, or one value per channel. The result is float64 if `dtype` is, otherwise
    float32.
    """
    dtype = jnp.promote_types(dtype, jnp.float32)
    last = (1,) * (images.ndim - 1) + (-1,)
    means, stds = jnp.asarray(mean, dtype).reshape(last), jnp.asarray(std, dtype).reshape(last)
    return (images.astype(dtype) / 255 - means) / stds


def training_input(
    data: DataConfig, config: AugmentConfig, images: Array, *, dtype, key: Array, sample_ids: Array
) -> Array:
    """Augments, resizes and normalizes images for training.

    The random numbers of an image are a pure function of the key, its index in the split, and the epoch.

    Args:
      data: image size, method of resizing, mean and standard deviation.
      config: augmentation.
      images: (B, H, W, C) uint8.
      dtype: dtype of the network's computation.
      key: PRNG key of the run.
      sample_ids: (B, 2) int32, (epoch, index in the split) of each image.

    Returns:
      The model input (B, H', W', C), float64 if `dtype` is, otherwise float32.
    """

    def keys_of(epoch: Array, example: Array) -> tuple[Array, Array]:
        example_key = jax.random.fold_in(key, example)
        return example_key, jax.random.fold_in(example_key, epoch)

    def augmented(epoch: Array, example_key: Array, epoch_key: Array, image: Array) -> Array:
        keys = jax.random.split(epoch_key, 6)
        if config.crop_padding:
            mode = {"black": "constant"}.get(config.crop_fill, config.crop_fill)
            image = geometry.random_crop(keys[0], image, config.crop_padding, mode)
        if config.translation:
            image = geometry.random_translation(keys[1], image, config.translation)
        if config.flip == "random":
            image = geometry.random_flip(keys[2], image)
        elif config.flip == "alternating":
            image = geometry.alternating_flip(example_key, image, epoch)
        if config.policy == "rand_augment":
            image = policies.rand_augment(keys[3], image, config.policy_operations, config.policy_magnitude)
        elif config.policy == "trivial_augment_wide":
            image = policies.trivial_augment_wide(keys[3], image)
        if config.color_jitter:
            image = color.color_jitter(keys[4], image, *config.color_jitter)
        if config.lighting:
            image = color.pca_lighting(keys[5], image, config.lighting)
        return image

    example_keys, epoch_keys = jax.vmap(keys_of)(sample_ids[:, 0], sample_ids[:, 1])
    images = jax.vmap(augmented)(sample_ids[:, 0], example_keys, epoch_keys, images)
    if data.image_size is not None:
        images = resize(images, data.image_size, data.resize)
    images = normalize(images, data.mean, data.std, dtype)
    if config.erasing:
        erasing_keys = jax.vmap(lambda epoch_key: jax.random.fold_in(epoch_key, 6))(epoch_keys)
        images = jax.vmap(lambda key, image: erasing.random_erasing(key, image, config.erasing))(
            erasing_keys, images
        )
    return images


def evaluation_inputs(data: DataConfig, config: EvaluationConfig, images: Array, *, dtype) -> list[Array]:
    """Returns the model inputs of evaluation: one for each view of the images that test-time augmentation takes.

    The caller averages the softmax over the views. An image is resized to `shorter_side`, or to `image_size` if
    `shorter_side` is None. Then "center" crops the center; "flip" adds its mirror image; "ten_crop" takes the four
    corners and the center, each also mirrored, as in Krizhevsky et al., "ImageNet Classification with Deep
    Convolutional Neural Networks", 2012, section 4.1. If `scales` is set, the whole image is resized to each scale
    instead, as in He et al., "Deep Residual Learning for Image Recognition", 2015, section 3.4. Deviation: images
    whose stored sizes differ are first decoded to their central square, at the largest scale.

    Args:
      data: image size, method of resizing, mean and standard deviation.
      config: sizes and test-time augmentation.
      images: (B, H, W, C) uint8.
      dtype: dtype of the network's computation.

    Returns:
      A list of views, each (B, S, S, C), or of the stored size if no size is configured. They are float64 if
      `dtype` is, otherwise float32.
    """
    geometry = EvaluationGeometry.of(data, config)
    size = geometry.crop_size
    if geometry.scales:
        views = [resize(images, scale, data.resize) for scale in geometry.scales]
    elif size is None or geometry.resize_size is None:
        views = [images]
    else:
        images = resize(images, geometry.resize_size, data.resize)
        corners = _crop_corners(config.views, images, size)
        views = [images[:, top : top + size, left : left + size] for top, left in corners]
    if config.views != "center":
        views += [view[:, :, ::-1] for view in views]
    return [normalize(view, data.mean, data.std, dtype) for view in views]


def _crop_corners(views: str, images: Array, size: int) -> list[tuple[int, int]]:
    """Returns (top, left) of each crop, in pixels."""
    bottom, right = images.shape[1] - size, images.shape[2] - size
    center = [(bottom // 2, right // 2)]
    if views != "ten_crop":
        return center
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), *center]
