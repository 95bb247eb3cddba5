"""A network as one file, which runs with JAX alone, or with ONNX: no Flax, and nothing of this package."""

import contextlib
import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.atomic import write_whole
from flaxcnn.errors import UserError
from flaxcnn.inference.folding import Variables, fold_batch_norm
from flaxcnn.inference.prediction import Views, average_views, misfits_refused, outside_meshes, whole_images
from flaxcnn.models.layers import Network
from flaxcnn.ops import stock_operations
from flaxcnn.paths import local_path

# One file for all of them: it is lowered for each, and shares the weights.
PLATFORMS = ("cpu", "cuda", "tpu")
# The offsets inside a serialised program have 32 bits with a sign.
_LARGEST = 2**31 - 2**24


def export(
    path: str | Path,
    model: Network,
    variables: Variables,
    image_shape: tuple[int | None, int | None, int],
    *,
    views: Views | None = None,
    probabilities: bool = False,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network with its weights as one program of `jax.export`, or as ONNX, for any number of images.

    It maps images (N, *image_shape) to logits (N, classes), BatchNorm folded away. A program runs on CPU, CUDA or
    TPU in a process that has only JAX: `jax.export.deserialize(Path(path).read_bytes()).call(images)`. A path that
    ends in `.onnx` becomes a model of ONNX, opset 18, for onnxruntime and others: it computes in float32, and its
    input is `images`, its output `logits` or `probabilities`. That needs the package `onnx`.

    Args:
      path: of the file, which must not exist; it appears when it is complete.
      model: a network of this package.
      variables: of the model; they become constants of the program.
      image_shape: (height, width, channels). In a program height and width may be None, for any size from the
        network's least, where it pools over the whole map; the program then has JAX's stock operations.
      views: `views(images)`, from uint8 images to the network's inputs, see `average_views`; the program then takes
        uint8. By default it takes the network's input, float32, or float64 if the model computes so.
      probabilities: whether it returns the softmax of the logits.
      class_names: written, if given, with shape and dtype of the images to a file beside it, as `path`.json.
      preprocessing: from an image file to the program's input, of `flaxcnn.inference.describe_preprocessing`;
        written, if given, to the same file.

    Raises:
      UserError: the file exists or its folder does not, the variables do not fit, or they exceed 2 GiB, which a
        program cannot hold (ONNX gets a second file, `path`.data, for them); the network takes images of one size
        alone; the package `onnx` is missing, or the network has an operation that cannot be written with it.
    """
    path = local_path(path)
    beside, data = (path.with_name(f"{path.name}.{ending}") for ending in ("json", "data"))
    is_onnx, is_told = path.suffix.lower() == ".onnx", bool(class_names or preprocessing)
    for file in (path, *([beside] if is_told else []), *([data] if is_onnx else [])):
        if file.exists():
            raise UserError(f"{file} exists already; name another file, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}")
    if is_onnx and importlib.util.find_spec("onnx") is None:
        raise UserError("a model of ONNX is written with the package onnx: pip install onnx")
    if is_onnx and None in image_shape:
        raise UserError(f"a model of ONNX takes images of one size; give height and width, got {image_shape}")
    model, variables = fold_batch_norm(model, variables)
    variables = jax.tree.map(np.asarray, variables)
    weight = sum(4 * leaf.size if is_onnx else leaf.nbytes for leaf in jax.tree.leaves(variables))
    if weight > _LARGEST and not is_onnx:
        raise UserError(
            f"an exported program holds up to 2 GiB of weights, and these are {weight / 2**30:.1f} GiB; a model of "
            f"ONNX, {path.name}.onnx, may hold more"
        )

    def logits(variables: Variables, images: jax.Array) -> jax.Array:
        return average_views(model, variables, (views or whole_images)(images))

    def program(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(variables, images)) if probabilities else logits(variables, images)

    dtype = jnp.dtype(jnp.uint8 if views else jnp.promote_types(model.dtype, jnp.float32))
    images = jax.ShapeDtypeStruct(_open_shape(image_shape, model.minimum_size), dtype)
    with outside_meshes(), misfits_refused(images.shape), _open_sizes(model, image_shape):
        if is_onnx:
            from flaxcnn.inference import onnx_writer  # needs a package that nothing else does

            network = type(model).__name__
            made = onnx_writer.to_onnx(logits, variables, images, network=network, probabilities=probabilities)
            save = functools.partial(onnx_writer.save, made, path, data if weight > _LARGEST else None)
        else:
            written = jax.export.export(jax.jit(program), platforms=PLATFORMS)(images).serialize()
            save = functools.partial(write_whole, path, written)
    if is_told:
        about: dict[str, Any] = {"image_shape": list(image_shape), "dtype": dtype.name}
        about |= {"class_names": list(class_names)} if class_names else {}
        about |= {"preprocessing": dict(preprocessing)} if preprocessing else {}
        write_whole(beside, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    save()


def _open_shape(image_shape: tuple[int | None, int | None, int], minimum_size: int) -> tuple[Any, ...]:
    """Returns (N, H, W, C) with symbols for the number of images and for what is None."""
    names = [name for name, size in zip(("height", "width"), image_shape, strict=False) if size is None]
    symbols = jax.export.symbolic_shape(
        ", ".join(["batch", *names]), constraints=[f"{name} >= {minimum_size}" for name in names]
    )
    sizes = iter(symbols)
    return (next(sizes), *(next(sizes) if size is None else size for size in image_shape))


@contextlib.contextmanager
def _open_sizes(model: Network, image_shape: tuple[int | None, int | None, int]) -> Iterator[None]:
    """Has a network traced for images of any size, and says so in a line if it takes but one."""
    if None not in image_shape:
        yield
        return
    try:
        # The quick ways of CPUs ask how large a map is.
        with stock_operations():
            yield
    except UserError:
        raise
    except (jax.errors.InconclusiveDimensionOperation, TypeError, ValueError, flax.errors.FlaxError) as error:
        raise UserError(
            f"{type(model).__name__} takes images of one size: it flattens its last map, or pools by windows that "
            f"depend on the size; give height and width"
        ) from error
