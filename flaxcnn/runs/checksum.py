"""Checksums of the arrays in a checkpoint, by which damage is detected."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxcnn.parallel.compilation import cheap_jit

# Parts of a train state that are also read on their own, to use a network without the state of its optimizer.
PARTS = ("params", "batch_stats", "ema")


def _sums(tree: Any) -> jax.Array:
    """Returns two checksums over all bits of a tree, (2,) uint32. Changing any one word changes at least one.

    Each word is multiplied by an odd weight that depends on its position, so that swapped words are detected, too.
    """
    sums = jnp.zeros(2, jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        bits = jnp.uint16 if data.dtype.itemsize == 2 else jnp.uint32
        words = jax.lax.bitcast_convert_type(data, bits).astype(jnp.uint32).ravel()
        places = jnp.arange(words.size, dtype=jnp.uint32) + jnp.uint32(1000003 * number % 2**32)
        weights = [places * jnp.uint32(factor) | 1 for factor in (2654435761, 2246822519)]
        sums += jnp.stack([(words * weight).sum(dtype=jnp.uint32) for weight in weights])
    return sums


checksum = cheap_jit(_sums)


@cheap_jit
def copy_with_checksums(tree: Any) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
    """Returns a copy of a tree, its checksum, and the checksums of the `PARTS` of its train state."""
    state = getattr(tree, "state", None)
    parts = {} if state is None else {part: _sums(getattr(state, part)) for part in PARTS}
    return jax.tree.map(jnp.copy, tree), _sums(tree), parts
