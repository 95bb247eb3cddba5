"""The loss of a classifier."""

import jax
import optax

Array = jax.Array

# Weight of the loss of each auxiliary head (Szegedy et al., "Going Deeper with Convolutions", 2014, section 5).
AUXILIARY_WEIGHT = 0.3


def cross_entropy(logits: Array, targets: Array, label_smoothing: float = 0.0) -> Array:
    """Returns the softmax cross-entropy of each example, (B,), in nats.

    Args:
      logits: (B, classes).
      targets: int labels (B,), or class probabilities (B, classes).
      label_smoothing: fraction of each target that is spread evenly over all classes.
    """
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
