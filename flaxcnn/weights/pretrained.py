"""Loads published weights: downloads and checks them, and adapts them to other numbers of classes and channels."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcnn.errors import UserError, nearest
from flaxcnn.models import create_model, model_info
from flaxcnn.models.network import Network
from flaxcnn.models.published import default_weights
from flaxcnn.paths import local_path
from flaxcnn.weights.convert import Variables, from_torch, init_variables
from flaxcnn.weights.download import fetch
from flaxcnn.weights.files import read_state_dict
from flaxcnn.weights.torch_names import torch_names


def load_pretrained(
    name: str,
    source: str | Path = "default",
    *,
    num_classes: int | None = None,
    channels: int | None = None,
    key: jax.Array | None = None,
    **fields: Any,
) -> tuple[Network, Variables]:
    """Returns a network with published weights, or with weights from a file in torchvision's format.

    Args:
      name: name of a network that torchvision has, such as "resnet50".
      source: tag of published weights (`model_info(name).weights`), "default" for torchvision's default, or path of
        a `.safetensors` or torch file. Published files are downloaded once, into `$FLAXCNN_CACHE` or
        `~/.cache/flaxcnn`, and their SHA-256 is checked.
      num_classes: number of classes; 0 for a network without classifier; None for the number in the file. If it
        differs from the number in the file, classifiers are newly initialized.
      channels: number of channels of the images; None for the number in the file. As in timm, the kernel of the
        first convolution is summed over its input channels for 1 channel, and repeated and scaled for other
        numbers.
      key: PRNG key for newly initialized classifiers; `jax.random.key(0)` by default.
      **fields: further fields of `create_model`, such as `dtype`.

    Returns:
      The network, and its variables with the structure and dtypes of its `init`. `googlenet` has `transform_input`
      set, so that it takes images normalized like those of the other networks. With other than three channels it is
      not set, and images must be scaled to [-1, 1]. `googlenet` has auxiliary heads only with `aux_logits=True`.

    Raises:
      UserError: the network, weights or file do not exist, the download failed, the file is damaged, or the weights
        do not fit the network.
    """
    if channels is not None and channels < 1:
        raise UserError(f"channels must be 1 or more, got {channels}")
    model = create_model(name, **fields, **({} if num_classes is None else {"num_classes": num_classes}))
    arrays = read_state_dict(_locate(name, source))
    names = torch_names(model)
    head, first = (
        arrays.get(f"{names.torch_layer(layer)}.{leaf}")
        for layer, leaf in (("head", "bias"), (names.first, "weight"))
    )
    file_classes = model_info(name).num_classes if head is None else head.size
    file_channels = 3 if first is None or first.ndim != 4 else first.shape[1]
    shapes = {field: value for field, value in fields.items() if not field.endswith("dtype")}
    converted = from_torch(name, arrays, channels=file_channels, **{**shapes, "num_classes": file_classes})

    channels = int(file_channels) if channels is None else channels
    if num_classes is None:
        num_classes, model = file_classes, model.clone(num_classes=file_classes)
    if name == "googlenet" and "transform_input" not in fields:
        model = model.clone(transform_input=channels == 3)
    flat: dict[tuple[str, ...], Any] = flatten_dict(converted)
    kernel = ("params", *names.first.split("/"), "kernel")
    if channels != file_channels:
        flat[kernel] = _fit_channels(flat[kernel], channels)
    if num_classes != file_classes:  # the classifiers of auxiliary heads are dropped, too
        flat = {path: value for path, value in flat.items() if path[-2] != "head"}
    return model, _complete(model, flat, channels, jax.random.key(0) if key is None else key)


def _locate(name: str, source: str | Path) -> Path:
    """Returns the path of a weight file; downloads the file if `source` is a tag."""
    published = model_info(name).weights
    if not published:
        raise UserError(f"no weights of {name} are published; torchvision's networks have them (docs/models.md)")
    tags = {weights.tag: weights for weights in published}
    if source == "default":
        source = default_weights(name).tag
    if weights := tags.get(str(source)):
        return fetch(weights.file, weights.url)
    if (path := local_path(source)).exists():
        return path
    hint = nearest(str(source), tags) or f"; the published weights are {', '.join(tags)}"
    raise UserError(f"{source} is neither a file nor published weights of {name}{hint}")


def _fit_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts a kernel (h, w, C, features) to `channels` channels; the response to equal channels stays the same."""
    exact = kernel.astype(np.float64)
    if channels == 1:
        return exact.sum(axis=2, keepdims=True).astype(kernel.dtype)
    index = np.arange(channels) % kernel.shape[2]
    return (exact[:, :, index] * (kernel.shape[2] / channels)).astype(kernel.dtype)


def _complete(model: Network, flat: dict[tuple[str, ...], Any], channels: int, key: jax.Array) -> Variables:
    """Returns the variables of a network: the given arrays, cast to its dtypes, and initial values for others."""

    def init(key: jax.Array) -> dict[tuple[str, ...], Any]:
        return flatten_dict(init_variables(model, channels, key))

    wanted = jax.eval_shape(init, key)
    missing = [path for path in wanted if path not in flat]
    # XLA removes the initialization of variables that are not returned.
    fresh = jax.jit(lambda key: {path: init(key)[path] for path in missing})(key) if missing else {}
    return unflatten_dict({path: jnp.asarray({**flat, **fresh}[path], leaf.dtype) for path, leaf in wanted.items()})
