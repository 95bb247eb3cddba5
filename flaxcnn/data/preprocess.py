"""What happens to uint8 images inside the compiled step: augmentation, resizing, normalisation, views."""

import jax
import jax.numpy as jnp

from flaxcnn.config import AugmentConfig, DataConfig, EvaluationConfig
from flaxcnn.data import augment, policies

Array = jax.Array


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
    shape = (batch, size, size, channels)
    if method == "nearest":
        return jax.image.resize(images, shape, method)
    # `jax.image.resize` computes its weights in JAX's default precision, which is another with `jax_enable_x64`.
    scale = jnp.array([size / height, size / width], jnp.float32)
    kernel = {"bilinear": "linear", "bicubic": "cubic"}[method]
    return jax.image.scale_and_translate(images, shape, (1, 2), scale, jnp.zeros(2, jnp.float32), kernel)


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype) -> Array:
    """Scales uint8 (or 0..255) images to 0..1, subtracts `mean` and divides by `std`, each one or one a channel."""
    dtype = jnp.promote_types(dtype, jnp.float32)
    last = (1,) * (images.ndim - 1) + (-1,)
    mean, std = jnp.asarray(mean, dtype).reshape(last), jnp.asarray(std, dtype).reshape(last)
    return (images.astype(dtype) / 255 - mean) / std


def training_input(
    data: DataConfig, config: AugmentConfig, images: Array, *, dtype, key: Array, visits: Array
) -> Array:
    """Turns uint8 images into the network's input in training: augmented, resized, normalised.

    What is drawn for an image is a pure function of the key, its number in the split, and the epoch.

    Args:
      data: the size, mean and deviation.
      config: what to do.
      images: (B, H, W, C) uint8.
      dtype: of the network's computation; the result is float32, or float64 if that is.
      key: of the run.
      visits: (B, 2) int32, the epoch and the number of the example in the split, for each image.
    """

    def keys_of(epoch: Array, example: Array) -> tuple[Array, Array]:
        example_key = jax.random.fold_in(key, example)
        return example_key, jax.random.fold_in(example_key, epoch)

    def stored(epoch: Array, example_key: Array, epoch_key: Array, image: Array) -> Array:
        keys = jax.random.split(epoch_key, 6)
        if config.crop_padding:
            mode = {"black": "constant"}.get(config.crop_fill, config.crop_fill)
            image = augment.random_crop(keys[0], image, config.crop_padding, mode)
        if config.translation:
            image = augment.random_translation(keys[1], image, config.translation)
        if config.flip == "random":
            image = augment.random_flip(keys[2], image)
        elif config.flip == "alternating":
            image = augment.alternating_flip(example_key, image, epoch)
        if config.policy == "rand_augment":
            image = policies.rand_augment(keys[3], image, config.policy_operations, config.policy_magnitude)
        elif config.policy == "trivial_augment_wide":
            image = policies.trivial_augment_wide(keys[3], image)
        if config.color_jitter:
            image = augment.color_jitter(keys[4], image, *config.color_jitter)
        if config.lighting:
            image = augment.pca_lighting(keys[5], image, config.lighting)
        return image

    example_keys, epoch_keys = jax.vmap(keys_of)(visits[:, 0], visits[:, 1])
    images = jax.vmap(stored)(visits[:, 0], example_keys, epoch_keys, images)
    if data.image_size is not None:
        images = resize(images, data.image_size, data.resize)
    images = normalize(images, data.mean, data.std, dtype)
    if config.erasing:
        erasing_keys = jax.vmap(lambda epoch_key: jax.random.fold_in(epoch_key, 6))(epoch_keys)
        images = jax.vmap(lambda key, image: augment.random_erasing(key, image, config.erasing))(
            erasing_keys, images
        )
    return images


def evaluation_inputs(data: DataConfig, config: EvaluationConfig, images: Array, *, dtype) -> list[Array]:
    """Turns uint8 images into the network's inputs in evaluation, one for each view whose softmax is averaged.

    The image is scaled to `shorter_side` (to `image_size` if that is unset), where it is not of that size already;
    a view of `image_size` is its centre, or its four corners and its centre, each also mirrored: the ten crops of
    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1. With
    `scales` the whole image is seen at each of them instead, as in He et al., "Deep Residual Learning for Image
    Recognition", 2015, section 3.4. Deviation: of a picture as stored that is its central square, decoded at the
    largest scale and shrunk from there, and not all of it.

    Args:
      data: mean and deviation, and the method of scaling.
      config: which views.
      images: (B, H, W, C) uint8.
      dtype: of the network's computation; the results are float32, or float64 if that is.

    Returns:
      The views, each (B, S, S, C), or as stored where no size is configured.
    """
    size = config.image_size or data.image_size
    if config.scales:
        views = [resize(images, scale, data.resize) for scale in config.scales]
    elif size is None:
        views = [images]
    else:
        images = resize(images, config.shorter_side or size, data.resize)
        views = [images[:, top : top + size, left : left + size] for top, left in _places(config, images, size)]
    if config.views != "center":
        views += [view[:, :, ::-1] for view in views]
    return [normalize(view, data.mean, data.std, dtype) for view in views]


def _places(config: EvaluationConfig, images: Array, size: int) -> list[tuple[int, int]]:
    bottom, right = images.shape[1] - size, images.shape[2] - size
    center = [(bottom // 2, right // 2)]
    if config.views != "ten_crop":
        return center
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), *center]
