"""Variables of a model without running its initialisers, which take XLA seconds to compile on a CPU."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.training.state import TrainState


def random_variables(model, shape, seed=0, dtype=None):
    """Returns variables for images of a shape: He's kernels, scales and variances in 1..2, others normal, 0.3."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros(shape))

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            values = rng.uniform(1, 2, leaf.shape)
        elif path[-1].key == "kernel":
            values = rng.standard_normal(leaf.shape, np.float32) * math.sqrt(2 / math.prod(leaf.shape[:-1]))
        else:
            values = rng.normal(0, 0.3, leaf.shape)
        return jnp.asarray(values, dtype or leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def random_images(*shape, seed=1):
    """Returns standard normal images."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def random_state(model, optimizer, shape, *, step=0, seed=0):
    """Returns the state of a training whose variables are random, at a step."""
    variables = random_variables(model, (1, *shape), seed=seed)
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        ema=None,
        loss_scale=None,
        rng=jax.random.key(seed),
    )


def tame_gates(variables):
    """Has gates stay near a half: with inputs of a thousand they jump, and let rounding grow ten-millionfold."""
    flat = flax.traverse_util.flatten_dict(variables)
    for path in flat:
        if path[-1] == "kernel" and "expand" in path:
            flat[path] = flat[path] / 1e4
    return flax.traverse_util.unflatten_dict(flat)
