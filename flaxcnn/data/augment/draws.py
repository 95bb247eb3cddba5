"""Random draws that several augmentations use."""

import jax
import jax.numpy as jnp

Array = jax.Array


def coin(key: Array) -> Array:
    """Returns a random boolean, () bool, which is true with probability 1/2."""
    return jax.random.bernoulli(key, jnp.float32(0.5))
