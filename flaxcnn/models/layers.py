"""What the families share: named activations, poolings and norms, and the guards of the model contract."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcnn.errors import UserError

Array = jax.Array
Dtype = Any
Activation = Callable[[Array], Array]
Pooling = Callable[[Array], Array]
Norm = Callable[..., nn.Module]

# torch's momentum 0.1 is linen's 0.9 (the share of the old statistic that is kept); linen's default is 0.99.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

average_pool_2x2 = functools.partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
max_pool_2x2 = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))

# What a configuration, which holds only text and numbers, may write for a field that takes a function.
NAMED: dict[str, dict[str, Callable]] = {
    "activation": {"relu": nn.relu, "sigmoid": nn.sigmoid, "tanh": jnp.tanh, "gelu": nn.gelu},
    "pooling": {"average": average_pool_2x2, "max": max_pool_2x2},
    "norm": {
        "batch_norm": BatchNorm,
        "layer_norm": nn.LayerNorm,
        "group_norm": functools.partial(nn.GroupNorm, num_groups=None, group_size=1),
    },
}


def make_norm(norm: Norm | None, *, axis_name: str | None, dtype: Dtype, param_dtype: Dtype) -> nn.Module | None:
    """Builds an injected norm; one that keeps running statistics also learns the device axis to average over."""
    if norm is None:
        return None
    fields = {"dtype": dtype, "param_dtype": param_dtype}
    module = norm(**fields)
    return norm(**fields, axis_name=axis_name) if isinstance(module, nn.BatchNorm) else module


def apply_norm(module: nn.Module | None, x: Array, *, train: bool) -> Array:
    """Applies a norm made by `make_norm`; BatchNorm uses the batch in training and its averages otherwise."""
    if module is None:
        return x
    return module(x, use_running_average=not train) if isinstance(module, nn.BatchNorm) else module(x)


def as_logits(x: Array) -> Array:
    """Returns logits as float32, or as float64 when the network computed in float64."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def check_images(name: str, images: Array, minimum_size: int) -> None:
    """Raises `UserError` unless `images` is (B, H, W, C) with H and W of at least `minimum_size` pixels."""
    if images.ndim != 4:
        raise UserError(f"{name} takes images of shape (batch, height, width, channels), got {images.shape}")
    height, width = images.shape[1:3]
    if min(height, width) < minimum_size:
        raise UserError(
            f"{name} takes images of at least {minimum_size}x{minimum_size} pixels, got {height}x{width}"
        )
