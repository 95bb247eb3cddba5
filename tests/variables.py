"""Variables of a model without running its initialisers, which take XLA seconds to compile on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, shape, seed=0, dtype=None):
    """Returns variables for images of a shape: normal with deviation 0.3, variances of BatchNorm in 1..2."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros(shape))

    def draw(path, leaf):
        if path[-1].key == "var":
            return jnp.asarray(rng.uniform(1, 2, leaf.shape), dtype or leaf.dtype)
        return jnp.asarray(rng.normal(0, 0.3, leaf.shape), dtype or leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def random_images(*shape, seed=1):
    """Returns standard normal images."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))
