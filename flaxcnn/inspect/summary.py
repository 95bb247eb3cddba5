"""Tables for the terminal: the list of networks, and the layers and costs of one network."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from flaxcnn.errors import UserError, nearest
from flaxcnn.models import create_model, list_models, model_info
from flaxcnn.models.cost import LayerCost, measure


def print_models(console: Console, pattern: str) -> None:
    """Prints the networks whose names match a shell pattern or, if none does, contain it.

    Raises:
      UserError: no name matches or contains the pattern.
    """
    names = list_models(pattern) or list_models(f"*{pattern}*")
    if not names:
        hint = nearest(pattern.strip("*?"), list_models())
        raise UserError(f"no network is named like {pattern!r}{hint} (python -m flaxcnn list)")
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("input", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("GMACs", justify="right", no_wrap=True)
    table.add_column("published accuracy")
    table.add_column("network")
    for name in names:
        info = model_info(name)
        table.add_row(
            name,
            _shape(info.input_shape),
            f"{info.parameters:,}",
            giga(info.macs),
            info.accuracy,
            info.summary,
        )
    console.print(table)


def print_summary(
    console: Console,
    name: str,
    fields: Mapping[str, Any],
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    batch: int = 1,
) -> None:
    """Prints the layers of a network in the order of computation: shapes, parameters, multiply-adds and memory.

    Args:
      console: console to print to.
      name: name of the network, as for `create_model`.
      fields: fields of `create_model` that override those of the network.
      image_size: height and width of the images, in pixels; by default the size that the network was designed for.
      channels: number of channels of the images; by default the number that the network was designed for.
      batch: number of images.

    Raises:
      UserError: the network or a field does not exist, a value is invalid, or the images are too small.
    """
    info, model = model_info(name), create_model(name, **fields)
    height, width = image_size or info.input_shape[:2]
    shape = (height, width, channels or info.input_shape[2])
    cost = measure(model, shape, batch=batch)

    table = Table(box=None, pad_edge=False)
    for header in ("layer", "output"):
        table.add_column(header, no_wrap=True)
    for header in ("parameters", "MACs", "memory"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("path", no_wrap=True)
    for layer in cost.layers:
        table.add_row(
            _kind(layer),
            _shape(layer.output_shape),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs:,}" if layer.macs else "",
            _bytes(layer.output_bytes),
            layer.path,
        )
    console.print(
        f"{name}: {info.summary}\n{info.paper}\n"
        f"input {_shape((batch, *shape))}, computed in {jnp.dtype(model.dtype).name}\n"
    )
    console.print(table)
    in_training = cost.parameters - sum(layer.parameters for layer in cost.layers)
    heads = f"; {in_training:,} of them in heads that run in training alone" if in_training else ""
    console.print(
        f"\nparameters          {cost.parameters:,} in {cost.tensors} arrays "
        f"({_bytes(4 * cost.parameters)}){heads}\n"
        f"running statistics  {cost.statistics:,}\n"
        f"MACs                {cost.macs:,} ({giga(cost.macs / batch)} G an image)\n"
        f"activations         {cost.activations:,} out of convolutions ({cost.activations / batch / 1e6:.2f} M an "
        f"image)\n"
        f"output memory       {_bytes(cost.output_bytes)}, the sum over the layers above"
    )


def _kind(layer: LayerCost) -> str:
    """Formats the operation of a layer, such as "Conv 3x3/2 g32" for stride 2 and 32 groups."""
    text = layer.kind
    if layer.window:
        text += f" {_shape(layer.window)}"
    if layer.strides and max(layer.strides) > 1:
        down, right = layer.strides
        text += f"/{down}" if down == right else f"/{down}x{right}"
    if layer.groups > 1:
        text += f" g{layer.groups}"
    return text


def giga(count: float) -> str:
    """Formats a count in units of 10^9, with three decimals, or with two significant digits if it is below 0.01."""
    return f"{count / 1e9:.3f}" if count >= 1e7 else f"{count / 1e9:.2g}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
