"""The stock twin of each of our operations: what Flax, JAX and textbooks have, in the place of ours.

with stock.operations():
    logits = stock.network(model).apply(variables, images, train=False)
"""

import contextlib
import dataclasses
import functools
import math
import sys
import types
from collections.abc import Callable, Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import flaxcnn.models
import flaxcnn.ops
from flaxcnn.models.network import Network

Array = jax.Array


def convolution(*arguments, **keywords) -> Array:
    """JAX's own, which linen's `Conv` calls by default."""
    return jax.lax.conv_general_dilated(*arguments, **keywords)


def dense(x: Array, kernel: Array) -> Array:
    """JAX's own product."""
    return x @ kernel


def _ends(x: Array, window: int, stride: int, padding: int, ceil_mode: bool) -> list[tuple[int, int]]:
    """Returns the padding of rows and columns; in ceil mode a last window may hang over the end."""
    paddings = []
    for size in x.shape[1:3]:
        rest = (size + 2 * padding - window) % stride
        more = stride - rest if ceil_mode and rest else 0
        if padding + more >= window:  # such a window would start beyond the map
            more = 0
        paddings.append((padding, padding + more))
    return paddings


def max_pool(x: Array, window: int, stride: int, *, padding: int = 0, ceil_mode: bool = False) -> Array:
    """Flax's own."""
    paddings = _ends(x, window, stride, padding, ceil_mode)
    return nn.max_pool(x, (window, window), (stride, stride), paddings)


def average_pool(x: Array, window: int, stride: int) -> Array:
    """Flax's own; without the paddings that no network here has in its average pooling."""
    return nn.avg_pool(x, (window, window), (stride, stride))


def global_average_pool(x: Array, *, keepdims: bool = False) -> Array:
    """The mean, as every network in Flax has it."""
    return x.mean(axis=(1, 2), keepdims=keepdims)


def adaptive_average_pool(x: Array, output_size: tuple[int, int]) -> Array:
    """The mean over each bin, bin by bin."""

    def bins(size: int, count: int) -> list[slice]:
        return [slice(i * size // count, math.ceil((i + 1) * size / count)) for i in range(count)]

    rows, columns = map(bins, x.shape[1:3], output_size)
    return jnp.stack([jnp.stack([x[:, r, c].mean(axis=(1, 2)) for c in columns], axis=1) for r in rows], axis=1)


def local_response_norm(
    x: Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    divide_by_size: bool = False,
) -> Array:
    """The formula, with a sum over windows of channels."""
    padding = (size // 2, (size - 1) // 2)
    window = (1,) * (x.ndim - 1) + (size,)
    paddings = ((0, 0),) * (x.ndim - 1) + (padding,)
    sums = jax.lax.reduce_window(x * x, 0.0, jax.lax.add, window, (1,) * x.ndim, paddings)
    return x / (k + (alpha / size if divide_by_size else alpha) * sums) ** beta


def used() -> list[tuple[types.ModuleType, str, Callable]]:
    """Returns what the modules of the networks have from `flaxcnn.ops`: module, name there, operation."""
    return [
        (module, name, value)
        for module_name, module in sorted(sys.modules.items())
        if module_name.startswith(f"{flaxcnn.models.__name__}.")
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and vars(flaxcnn.ops).get(value.__name__) is value
        if value is not flaxcnn.ops.stock_operations
    ]


def twin(operation: Callable) -> Callable:
    """Returns the stock twin of an operation, which has its name here."""
    try:
        return globals()[operation.__name__]
    except KeyError:
        raise NotImplementedError(f"benchmarks/stock.py has no twin of {operation.__name__}") from None


@contextlib.contextmanager
def operations(replace: Callable[[Callable], Callable] = twin) -> Iterator[None]:
    """Within it networks are traced with `replace(operation)` in the place of each operation of ours."""
    with contextlib.ExitStack() as stack:
        for module, name, operation in used():
            stack.enter_context(mock.patch.object(module, name, replace(operation)))
        yield


def network(model: Network, replace: Callable[[Callable], Callable] = twin) -> Network:
    """Returns a network whose fields, too, have `replace(operation)`: LeNet-5 holds its pooling in one."""
    replaced = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if isinstance(value, functools.partial) and value.func.__module__.startswith("flaxcnn.ops."):
            replaced[field.name] = functools.partial(replace(value.func), *value.args, **value.keywords)
    return model.clone(**replaced)


def assert_close(result: Array, expected: Array, tolerance: float) -> None:
    """Raises `AssertionError` if arrays differ by more than so much of the largest value."""
    result, expected = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    difference, scale = np.abs(result - expected).max(), np.abs(expected).max()
    if not difference <= tolerance * scale:
        raise AssertionError(f"off by {difference:.2g}, where the largest value is {scale:.2g}")
