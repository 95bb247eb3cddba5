"""Networks as tables on the terminal: what there is, and what one costs layer by layer."""

from rich.console import Console
from rich.table import Table

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, list_models, model_info
from flaxcnn.models.cost import measure


def print_models(console: Console, pattern: str) -> None:
    """Prints the networks whose names match a shell wildcard.

    Raises:
      UserError: none does.
    """
    names = list_models(pattern) or list_models(f"*{pattern}*")
    if not names:
        raise UserError(f"no network is named like {pattern!r} (python -m flaxcnn list)")
    table = Table("name", "input", "published accuracy", "network", box=None, pad_edge=False)
    for name in names:
        info = model_info(name)
        table.add_row(name, "x".join(map(str, info.input_shape)), info.accuracy, info.summary)
    console.print(table)


def print_summary(console: Console, name: str, *, image_size: int | None = None, batch: int = 1) -> None:
    """Prints each layer's output, kernel, parameters, multiply-adds and output memory, and the sums.

    Args:
      console: where to.
      name: of the network.
      image_size: height and width of the images, in pixels; by default those it was made for.
      batch: number of images.

    Raises:
      UserError: no such network, or images too small for it.
    """
    info = model_info(name)
    height, width, channels = info.input_shape
    shape = (image_size or height, image_size or width, channels)
    cost = measure(create_model(name), shape, batch=batch)

    table = Table(box=None, pad_edge=False)
    for header in ("layer", "output", "kernel"):
        table.add_column(header, no_wrap=True)
    for header in ("parameters", "MACs", "output memory"):
        table.add_column(header, justify="right", no_wrap=True)
    for layer in cost.layers:
        table.add_row(
            layer.path,
            _shape(layer.output_shape),
            _shape(layer.kernel_shape) if layer.kernel_shape else "",
            f"{layer.parameters:,}",
            f"{layer.macs:,}" if layer.macs else "",
            _bytes(layer.output_bytes),
        )
    console.print(f"{name}: {info.summary}\n{info.paper}\ninput {_shape((batch, *shape))}, float32\n")
    console.print(table)
    console.print(
        f"\nparameters          {cost.parameters:,} in {cost.tensors} arrays ({_bytes(4 * cost.parameters)})\n"
        f"running statistics  {cost.statistics:,}\n"
        f"MACs                {cost.macs:,} ({giga(cost.macs / batch)} G an image)\n"
        f"activations         {cost.activations:,} out of convolutions ({cost.activations / batch / 1e6:.2f} M an "
        f"image)\n"
        f"output memory       {_bytes(cost.output_bytes)} of all layers above"
    )


def giga(count: float) -> str:
    """Returns 10^9s with three decimals, or with two digits where those would vanish."""
    return f"{count / 1e9:.3f}" if count >= 1e7 else f"{count / 1e9:.2g}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
