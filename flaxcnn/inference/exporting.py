"""A network as one file, which runs with JAX alone: no Flax, and nothing of this package."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.atomic import write_whole
from flaxcnn.errors import UserError
from flaxcnn.inference.folding import Variables, fold_batch_norm
from flaxcnn.inference.prediction import Views, average_views, misfits_refused, outside_meshes, whole_images
from flaxcnn.models.layers import Network
from flaxcnn.paths import local_path

# One file for all of them: it is lowered for each, and shares the weights.
PLATFORMS = ("cpu", "cuda", "tpu")
# The offsets inside a serialised program have 32 bits with a sign.
_LARGEST = 2**31 - 2**24


def export(
    path: str | Path,
    model: Network,
    variables: Variables,
    image_shape: tuple[int, int, int],
    *,
    views: Views | None = None,
    probabilities: bool = False,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network with its weights as one program of `jax.export`, for any number of images.

    It maps images (N, *image_shape) to logits (N, classes), on CPU, CUDA or TPU, BatchNorm folded away, in a
    process that has only JAX: `jax.export.deserialize(Path(path).read_bytes()).call(images)`.

    Args:
      path: of the file, which must not exist; it appears when it is complete.
      model: a network of this package.
      variables: of the model; they become constants of the program.
      image_shape: (height, width, channels).
      views: `views(images)`, from uint8 images to the network's inputs, see `average_views`; the program then takes
        uint8. By default it takes the network's input, float32, or float64 if the model computes so.
      probabilities: whether it returns the softmax of the logits.
      class_names: written, if given, with shape and dtype of the images to a file beside it, as `path`.json.
      preprocessing: from an image file to the program's input, of `flaxcnn.inference.describe_preprocessing`;
        written, if given, to the same file.

    Raises:
      UserError: the file exists or its folder does not, the variables do not fit, or they exceed 2 GiB, which a
        program cannot hold.
    """
    path = local_path(path)
    beside = path.with_name(f"{path.name}.json")
    for file in (path, beside) if class_names or preprocessing else (path,):
        if file.exists():
            raise UserError(f"{file} exists already; name another file, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}")
    model, variables = fold_batch_norm(model, variables)
    variables = jax.tree.map(np.asarray, variables)
    weight = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    if weight > _LARGEST:
        raise UserError(f"an exported program holds up to 2 GiB of weights, and these are {weight / 2**30:.1f} GiB")

    def program(images: jax.Array) -> jax.Array:
        logits = average_views(model, variables, (views or whole_images)(images))
        return jax.nn.softmax(logits) if probabilities else logits

    dtype = jnp.dtype(jnp.uint8 if views else jnp.promote_types(model.dtype, jnp.float32))
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *image_shape), dtype)
    with outside_meshes(), misfits_refused(images.shape):
        exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(images)
    if class_names or preprocessing:
        about: dict[str, Any] = {"image_shape": list(image_shape), "dtype": dtype.name}
        about |= {"class_names": list(class_names)} if class_names else {}
        about |= {"preprocessing": dict(preprocessing)} if preprocessing else {}
        write_whole(beside, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    write_whole(path, exported.serialize())
