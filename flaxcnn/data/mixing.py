"""Mixing the images of a batch with one another, and their targets with them: mixup and cutmix.

Each image is mixed with its neighbour, 0 with 1, 2 with 3 and so on, both of a pair in the same way. The papers'
code takes a random permutation of the batch instead. The order of examples is random already, so a mixed image has
the same distribution; and a batch cut into even parts, one a device, gives with the same key what the whole does.
"""

import jax
import jax.numpy as jnp

from flaxcnn.data.augment import box_mask, coin, rounded_product
from flaxcnn.errors import UserError

Array = jax.Array


def mix(key: Array, images: Array, targets: Array, mixup_alpha: float, cutmix_alpha: float) -> tuple[Array, Array]:
    """Mixes a batch by `mixup` or by `cutmix`, a batch each with probability 1/2; an alpha of 0 leaves its one out.

    As the training recipes of torchvision choose between the two.

    Args:
      key: of the draws, the same for every part of a batch.
      images: (B, H, W, C) float, B even.
      targets: (B, K) float, each row summing to one.
      mixup_alpha: of `mixup`, or 0.
      cutmix_alpha: of `cutmix`, or 0.

    Returns:
      Images and targets, mixed; if both alphas are 0, as they were.

    Raises:
      UserError: B is odd, or an alpha below 0.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    if not cutmix_alpha:
        return mixup(key, images, targets, mixup_alpha)
    if not mixup_alpha:
        return cutmix(key, images, targets, cutmix_alpha)
    _check_above_zero(min(mixup_alpha, cutmix_alpha))
    choice_key, share_key, box_key = jax.random.split(key, 3)
    takes_mixup = coin(choice_key)
    # One draw for both, since a Beta variable takes seconds to compile.
    share = _draw_share(share_key, jnp.where(takes_mixup, mixup_alpha, cutmix_alpha))
    return jax.lax.cond(
        takes_mixup,
        lambda: (_average(images, share), _average(targets, share)),
        lambda: _paste(box_key, images, targets, share),
    )


def mixup(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Averages each image with its neighbour, lambda of its own to 1 - lambda of the other, and so the targets.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. Lambda ~ Beta(alpha, alpha), one a batch.

    Args:
      key: see `mix`.
      images: see `mix`.
      targets: see `mix`.
      alpha: above 0.

    Returns:
      Images and targets, mixed.

    Raises:
      UserError: B is odd, or alpha is not above 0.
    """
    _check_above_zero(alpha)
    share = _draw_share(key, alpha)
    return _average(images, share), _average(targets, share)


def cutmix(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Pastes a box of its neighbour into each image, and averages the targets by the share of pixels.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019. The
    box has the image's proportions and 1 - lambda of its area, lambda ~ Beta(alpha, alpha), and a uniformly random
    centre; what lies outside of the image is cut off, and lambda becomes the share of pixels kept. One box a batch.

    Args:
      key: see `mix`.
      images: see `mix`.
      targets: see `mix`.
      alpha: above 0.

    Returns:
      Images and targets, mixed.

    Raises:
      UserError: B is odd, or alpha is not above 0.
    """
    _check_above_zero(alpha)
    share_key, box_key = jax.random.split(key)
    return _paste(box_key, images, targets, _draw_share(share_key, alpha))


def _check_above_zero(alpha: float) -> None:
    if alpha <= 0:
        raise UserError(f"alpha is {alpha}; it must be above 0")


def _draw_share(key: Array, alpha: Array | float) -> Array:
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _paste(key: Array, images: Array, targets: Array, share: Array) -> tuple[Array, Array]:
    """Pastes a box of 1 - share of the area, at a random place, from each image's neighbour."""
    _, height, width, _ = images.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]), jnp.int32)
    side = jnp.sqrt(1 - share)
    half_height, half_width = (side * height).astype(jnp.int32) // 2, (side * width).astype(jnp.int32) // 2
    # Rows and columns beyond the image are in no mask.
    box = box_mask(height, width, row - half_height, column - half_width, row + half_height, column + half_width)
    kept = 1 - box.sum(dtype=jnp.float32) / (height * width)
    return jnp.where(box[..., None], neighbours(images), images), _average(targets, kept)


def _average(array: Array, share: Array) -> Array:
    share = share.astype(array.dtype)
    # Rounded each, so that all parts of a batch agree to the last bit, however they are compiled.
    return rounded_product(share, array) + rounded_product(1 - share, neighbours(array))


def neighbours(array: Array) -> Array:
    """Swaps 0 with 1, 2 with 3 and so on, along the first axis."""
    if len(array) % 2:
        raise UserError(f"a batch of {len(array)} cannot be mixed in pairs; it must be even")
    return array.reshape(-1, 2, *array.shape[1:])[:, ::-1].reshape(array.shape)
