"""Test-time augmentation: several views (model inputs) of each image, whose predictions are averaged."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcnn.inference.folding import Variables

Array = jax.Array
Views = Callable[[Array], Sequence[Array]]
"""A function from images (B, H, W, C) to a list of model inputs (B, H', W', C), each a view of all images."""


def whole_images(images: Array) -> list[Array]:
    """Returns the images as the only view; used if they are model inputs already."""
    return [images]


def average_views(model: nn.Module, variables: Variables, views: Sequence[Array]) -> Array:
    """Returns the logits (B, classes) for one view, or the logarithm of the mean softmax over several views.

    Args:
      model: the network.
      variables: variables of the network.
      views: model inputs (B, H, W, C). Views of equal sizes are concatenated to one batch.
    """

    def apply(images: Array) -> Array:
        return cast(Array, model.apply(variables, images, train=False))

    if len(views) == 1:
        return apply(views[0])
    by_shape: dict[tuple[int, ...], list[Array]] = {}
    for view in views:
        by_shape.setdefault(view.shape, []).append(view)
    logits = []
    for same_shape in by_shape.values():
        batch = apply(jnp.concatenate(same_shape))
        logits += list(batch.reshape(len(same_shape), -1, batch.shape[-1]))
    log_probabilities = jnp.stack([jax.nn.log_softmax(each) for each in logits])
    return jax.nn.logsumexp(log_probabilities, axis=0) - math.log(len(logits))
