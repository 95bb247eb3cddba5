"""Export of a network with its weights, as a program of `jax.export` or as an ONNX model.

Neither Flax nor this package is needed to run them.
"""

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
from flaxcnn.inference.mismatches import mismatch_as_user_error
from flaxcnn.inference.views import Views, average_views, whole_images
from flaxcnn.models.network import Network
from flaxcnn.ops import stock_operations
from flaxcnn.parallel.meshes import without_mesh
from flaxcnn.paths import local_path

# A program is lowered for all of these platforms, and contains the weights once.
PLATFORMS = ("cpu", "cuda", "tpu")
# Maximum number of bytes of the weights: offsets inside a serialized program are signed 32-bit integers.
_LARGEST = 2**31 - 2**24


def export(
    path: str | Path,
    model: Network,
    variables: Variables,
    image_shape: tuple[int | None, int | None, int],
    *,
    preprocess: Views | None = None,
    probabilities: bool = False,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network with its weights as a program of `jax.export` or as an ONNX model.

    The exported function maps any number of images (N, *image_shape) to logits (N, classes). BatchNorm is folded
    into the convolutions. A program runs on CPU, CUDA or TPU in a process that has only JAX:
    `jax.export.deserialize(bytearray(Path(path).read_bytes())).call(images)`. If the path ends in `.onnx`, an ONNX
    model (opset 18) is written, for onnxruntime and other runtimes. It computes in float32. Its input is named
    `images`, and its output `logits` or `probabilities`. Writing it requires the package `onnx`.

    Args:
      path: file to write. It must not exist, and appears only when it is complete.
      model: a network of this package.
      variables: variables of the model, which become constants of the program.
      image_shape: (height, width, channels). For a program, height and width may be None. The program then accepts
        any size from the network's minimum size up, and consists of JAX's own operations. This requires a network
        that pools over the whole feature map.
      preprocess: `preprocess(images)`, traced by JAX, which maps uint8 images (N, *image_shape) to a list of model
        inputs; with several inputs (test-time augmentation) the softmax is averaged. It becomes part of the
        program, whose input is then uint8. By default the input of the program is the model input, in float32, or
        in float64 if the model computes in float64.
      probabilities: whether the program returns the softmax of the logits instead of the logits.
      class_names: names of the classes. If given, they are written to the JSON file `path`.json, together with the
        shape and dtype of the images.
      preprocessing: description of the steps from an image file to the program's input, as returned by
        `flaxcnn.inference.describe_preprocessing`. If given, it is written to the same JSON file. It does not
        change the program.

    Raises:
      UserError: the file exists or its folder does not; the variables do not fit the model; the variables exceed 2
        GiB, the limit for a program (an ONNX model stores them in a second file, `path`.data); height or width is
        None, but the network accepts images of one size only; the package `onnx` is missing; the network contains
        an operation that cannot be written as ONNX.
    """
    path = local_path(path)
    description, weight_file = (path.with_name(f"{path.name}.{ending}") for ending in ("json", "data"))
    is_onnx, is_described = path.suffix.lower() == ".onnx", bool(class_names or preprocessing)
    for file in (path, *([description] if is_described else []), *([weight_file] if is_onnx else [])):
        if file.exists():
            raise UserError(f"{file} exists already; name another file, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}")
    if is_onnx and importlib.util.find_spec("onnx") is None:
        raise UserError("an ONNX model is written with the package onnx: pip install onnx")
    if is_onnx and None in image_shape:
        raise UserError(f"an ONNX model takes images of one size; give height and width, got {image_shape}")
    model, variables = fold_batch_norm(model, variables)
    variables = jax.tree.map(np.asarray, variables)
    num_bytes = sum(4 * leaf.size if is_onnx else leaf.nbytes for leaf in jax.tree.leaves(variables))
    if num_bytes > _LARGEST and not is_onnx:
        raise UserError(
            f"an exported program holds up to 2 GiB of weights, and these are {num_bytes / 2**30:.1f} GiB; an ONNX "
            f"model, {path.name}.onnx, may hold more"
        )

    def logits(variables: Variables, images: jax.Array) -> jax.Array:
        return average_views(model, variables, (preprocess or whole_images)(images))

    def program(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(variables, images)) if probabilities else logits(variables, images)

    dtype = jnp.dtype(jnp.uint8 if preprocess else jnp.promote_types(model.dtype, jnp.float32))
    images = jax.ShapeDtypeStruct(_symbolic_shape(image_shape, model.minimum_size), dtype)
    with without_mesh(), mismatch_as_user_error(images.shape), _traced_for_any_size(model, image_shape):
        if is_onnx:
            from flaxcnn.inference.onnx import model as onnx_model  # requires the package onnx

            network = type(model).__name__
            built = onnx_model.to_onnx(logits, variables, images, network=network, probabilities=probabilities)
            save = functools.partial(onnx_model.save, built, path, weight_file if num_bytes > _LARGEST else None)
        else:
            serialized = jax.export.export(jax.jit(program), platforms=PLATFORMS)(images).serialize()
            save = functools.partial(write_whole, path, serialized)
    if is_described:
        about: dict[str, Any] = {"image_shape": list(image_shape), "dtype": dtype.name}
        about |= {"class_names": list(class_names)} if class_names else {}
        about |= {"preprocessing": dict(preprocessing)} if preprocessing else {}
        write_whole(description, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    save()


def _symbolic_shape(image_shape: tuple[int | None, int | None, int], minimum_size: int) -> tuple[Any, ...]:
    """Returns (N, H, W, C) with a symbolic dimension for the number of images and for each size that is None."""
    names = [name for name, size in zip(("height", "width"), image_shape, strict=False) if size is None]
    symbols = jax.export.symbolic_shape(
        ", ".join(["batch", *names]), constraints=[f"{name} >= {minimum_size}" for name in names]
    )
    sizes = iter(symbols)
    return (next(sizes), *(next(sizes) if size is None else size for size in image_shape))


@contextlib.contextmanager
def _traced_for_any_size(model: Network, image_shape: tuple[int | None, int | None, int]) -> Iterator[None]:
    """Context manager for tracing a network for any image size, if a size is None.

    It re-raises errors of networks that accept only one image size as `UserError`.
    """
    if None not in image_shape:
        yield
        return
    try:
        # The implementations of convolution and pooling on CPUs depend on the size of the feature map.
        with stock_operations():
            yield
    except UserError:
        raise
    except (jax.errors.InconclusiveDimensionOperation, TypeError, ValueError, flax.errors.FlaxError) as error:
        raise UserError(
            f"{type(model).__name__} takes images of one size: it flattens its last feature map, or pools by "
            f"windows that depend on the size; give height and width"
        ) from error
