"""Random images, and what random functions of a key give for many keys."""

import jax
import jax.numpy as jnp
import numpy as np

# For programs that run once, a quick compilation is better than fast code.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def over_keys(function, image, count, seed=0):
    """The results of `function(key, image)` for `count` keys."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(function, (0, None)), compiler_options=QUICK)(keys, jnp.asarray(image)))


def assert_equally_often(counts):
    """Each count is within 5 standard deviations of the same fraction of the total."""
    fraction, total = 1 / counts.size, counts.sum()
    assert np.abs(counts - total * fraction).max() < 5 * np.sqrt(total * fraction * (1 - fraction)), counts
