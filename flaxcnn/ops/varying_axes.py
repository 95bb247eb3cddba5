"""Arrays that vary over the devices of a `jax.shard_map`, and arrays that are equal on all of them."""

from typing import Any

import jax
from jax.extend.core import Primitive

Array = jax.Array


def bind(new: Primitive, *operands: Array, **params: Any) -> Array:
    """Applies a primitive to arrays of which, within `shard_map`, some may vary over the devices and others not."""
    return new.bind(*equally_varying(*operands), **params)


def equally_varying(*arrays: Array) -> list[Array]:
    """Within `shard_map`, marks arrays as varying over all mesh axes over which any of them varies.

    JAX's own operations do so themselves. As a result, gradients with respect to the equal arrays, such as
    parameters, are summed over the devices.
    """
    axes = frozenset().union(*map(varying_axes, arrays))
    return [jax.lax.pcast(x, tuple(axes - varying_axes(x)), to="varying") for x in arrays]


def varying_axes(x: Array) -> frozenset[str]:
    """Returns the mesh axes over which an array varies in a `jax.shard_map`: none with `check_vma=False`."""
    return jax.typeof(x).mat.varying
