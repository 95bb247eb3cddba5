"""Mixup and cutmix, which mix the images of a batch, and their targets, in pairs.

Image 0 is mixed with image 1, 2 with 3, and so on; the two images of such a pair are called neighbors. Deviation:
the papers' code pairs the images by a random permutation of the batch. Here the order of examples is already
random, so mixed images have the same distribution. With fixed pairs, a key gives the same result whether a batch is
computed as a whole, sharded over devices, or cut into micro-batches, as long as each part has an even size.
"""

import jax
import jax.numpy as jnp

from flaxcnn.data.augment.draws import coin
from flaxcnn.data.augment.geometry import box_mask
from flaxcnn.data.augment.rounding import rounded_product
from flaxcnn.errors import UserError

Array = jax.Array


def mix(key: Array, images: Array, targets: Array, mixup_alpha: float, cutmix_alpha: float) -> tuple[Array, Array]:
    """Mixes a batch by `mixup` or by `cutmix`, each with probability 1/2, as torchvision's training recipes do.

    If one alpha is 0, the other method is always used.

    Args:
      key: PRNG key, which must be equal for all shards and micro-batches of a batch.
      images: (B, H, W, C) float with B even.
      targets: (B, K) float, each row summing to one.
      mixup_alpha: alpha of `mixup`; 0 switches it off.
      cutmix_alpha: alpha of `cutmix`; 0 switches it off.

    Returns:
      (mixed images, mixed targets). If both alphas are 0, images and targets are returned unchanged.

    Raises:
      UserError: B is odd, or an alpha is below 0.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    if not cutmix_alpha:
        return mixup(key, images, targets, mixup_alpha)
    if not mixup_alpha:
        return cutmix(key, images, targets, cutmix_alpha)
    _check_above_zero(min(mixup_alpha, cutmix_alpha))
    choice_key, lambda_key, box_key = jax.random.split(key, 3)
    takes_mixup = coin(choice_key)
    # One draw for both methods, because drawing from a Beta distribution takes seconds to compile.
    weight = _draw_lambda(lambda_key, jnp.where(takes_mixup, mixup_alpha, cutmix_alpha))
    return jax.lax.cond(
        takes_mixup,
        lambda: (_average(images, weight), _average(targets, weight)),
        lambda: _paste(box_key, images, targets, weight),
    )


def mixup(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Averages each image with its neighbor, and their targets likewise, with weights lambda and 1 - lambda.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. One lambda ~ Beta(alpha, alpha) is drawn for
    the whole batch.

    Args:
      key: see `mix`.
      images: see `mix`.
      targets: see `mix`.
      alpha: parameter of the Beta distribution, above 0.

    Returns:
      Mixed images and mixed targets.

    Raises:
      UserError: B is odd, or alpha is not above 0.
    """
    _check_above_zero(alpha)
    weight = _draw_lambda(key, alpha)
    return _average(images, weight), _average(targets, weight)


def cutmix(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Replaces a box of each image by that of its neighbor, and averages the targets by the fractions of pixels.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019. The
    box has the aspect ratio of the image, and 1 - lambda times its area, with lambda ~ Beta(alpha, alpha). The
    center of the box is uniformly random. The part of the box outside the image is cut off, and lambda becomes the
    fraction of pixels that are kept. One box is drawn for the whole batch.

    Args:
      key: see `mix`.
      images: see `mix`.
      targets: see `mix`.
      alpha: parameter of the Beta distribution, above 0.

    Returns:
      Mixed images and mixed targets.

    Raises:
      UserError: B is odd, or alpha is not above 0.
    """
    _check_above_zero(alpha)
    lambda_key, box_key = jax.random.split(key)
    return _paste(box_key, images, targets, _draw_lambda(lambda_key, alpha))


def _check_above_zero(alpha: float) -> None:
    if alpha <= 0:
        raise UserError(f"alpha is {alpha}; it must be above 0")


def _draw_lambda(key: Array, alpha: Array | float) -> Array:
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _paste(key: Array, images: Array, targets: Array, weight: Array) -> tuple[Array, Array]:
    """Replaces a random box with 1 - weight times the area of each image by that of its neighbor, see `cutmix`."""
    _, height, width, _ = images.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]), jnp.int32)
    side = jnp.sqrt(1 - weight)
    half_height, half_width = (side * height).astype(jnp.int32) // 2, (side * width).astype(jnp.int32) // 2
    # The edges of the box may lie outside the image, see `box_mask`.
    box = box_mask(height, width, row - half_height, column - half_width, row + half_height, column + half_width)
    kept = 1 - box.sum(dtype=jnp.float32) / (height * width)
    return jnp.where(box[..., None], neighbours(images), images), _average(targets, kept)


def _average(array: Array, weight: Array) -> Array:
    weight = weight.astype(array.dtype)
    # Each product is rounded, so that shards and micro-batches give the same bits, however they are compiled.
    return rounded_product(weight, array) + rounded_product(1 - weight, neighbours(array))


def neighbours(array: Array) -> Array:
    """Swaps entry 0 with 1, 2 with 3, and so on, along the first axis.

    Raises:
      UserError: the length of the axis is odd.
    """
    if len(array) % 2:
        raise UserError(f"a batch of {len(array)} cannot be mixed in pairs; it must be even")
    return array.reshape(-1, 2, *array.shape[1:])[:, ::-1].reshape(array.shape)
