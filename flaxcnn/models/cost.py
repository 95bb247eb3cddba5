"""What a network costs, layer by layer, from the shapes alone: nothing is run or allocated."""

import dataclasses
from collections.abc import Mapping

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One layer that has parameters or running statistics of its own.

    Attributes:
      path: where its parameters lie, such as "stage1_block1/conv1/conv".
      kind: its module class.
      output_shape: with the batch.
      kernel_shape: of the parameter `kernel`, or None.
      parameters: trainable elements.
      statistics: elements of running averages.
      macs: multiply-adds of one call with this batch.
      activations: elements of the output if it is a convolution's, otherwise 0.
      output_bytes: memory of the output.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...] | None
    parameters: int
    statistics: int
    macs: int
    activations: int
    output_bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """The layers in the order in which they are called, and their sums; `tensors` counts trainable arrays."""

    layers: tuple[LayerCost, ...]
    parameters: int
    statistics: int
    tensors: int
    macs: int
    activations: int
    output_bytes: int


def measure(model: nn.Module, input_shape: tuple[int, int, int], *, batch: int = 1) -> Cost:
    """Returns what inference costs.

    Multiply-adds are those of convolutions and dense layers: each kernel element once for each position of the
    output. Activations are the elements that convolutions put out, the measure of Radosavovic et al. 2020.
    Heads that run in training alone count as parameters, but not as layers.

    Args:
      model: a network of this package.
      input_shape: (height, width, channels) of an image.
      batch: number of images.
    """
    calls: list[tuple[tuple[str, ...], str, jax.ShapeDtypeStruct]] = []
    training_only: list[tuple[str, ...]] = []

    def note(call, args, kwargs, context):
        module, path = context.module, context.module.path
        if getattr(module, "training_only", False):
            training_only.append(path)
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and not any(path[: len(head)] == head for head in training_only):
            calls.append((path, type(module).__name__, jax.ShapeDtypeStruct(result.shape, result.dtype)))
        return result

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    params, batch_stats = (_by_layer(variables.get(kind, {})) for kind in ("params", "batch_stats"))
    layers = []
    for path, kind, output in calls:
        own, statistics = params.get(path, {}), batch_stats.get(path, {})
        if not own and not statistics:
            continue
        kernel = own.get("kernel")
        positions = output.size // output.shape[-1]
        layers.append(
            LayerCost(
                path="/".join(path),
                kind=kind,
                output_shape=output.shape,
                kernel_shape=None if kernel is None else kernel.shape,
                parameters=sum(leaf.size for leaf in own.values()),
                statistics=sum(leaf.size for leaf in statistics.values()),
                macs=0 if kernel is None else positions * kernel.size,
                activations=output.size if kernel is not None and kernel.ndim > 2 else 0,
                output_bytes=output.size * output.dtype.itemsize,
            )
        )
    leaves = jax.tree.leaves(params)
    return Cost(
        layers=tuple(layers),
        parameters=sum(leaf.size for leaf in leaves),
        statistics=sum(leaf.size for leaf in jax.tree.leaves(batch_stats)),
        tensors=len(leaves),
        macs=sum(layer.macs for layer in layers),
        activations=sum(layer.activations for layer in layers),
        output_bytes=sum(layer.output_bytes for layer in layers),
    )


def _by_layer(collection: Mapping) -> dict[tuple[str, ...], dict[str, jax.ShapeDtypeStruct]]:
    """Returns the arrays of a collection by the path of their layer, then by their own name."""
    layers: dict[tuple[str, ...], dict[str, jax.ShapeDtypeStruct]] = {}
    for path, leaf in flax.traverse_util.flatten_dict(collection).items():
        layers.setdefault(path[:-1], {})[path[-1]] = leaf
    return layers
