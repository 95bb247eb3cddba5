"""Published weights, fetched, checked and fitted to the classes and channels that one has."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.errors import UserError, nearest
from flaxcnn.models import create_model, model_info
from flaxcnn.models.layers import Network
from flaxcnn.models.published import default_weights
from flaxcnn.weights.convert import Variables, from_torch
from flaxcnn.weights.download import fetch
from flaxcnn.weights.files import read_state_dict
from flaxcnn.weights.torch_names import torch_names


def load_pretrained(
    name: str,
    source: str | Path = "default",
    *,
    num_classes: int | None = None,
    channels: int = 3,
    key: jax.Array | None = None,
    **fields: Any,
) -> tuple[Network, Variables]:
    """Returns a network and its published weights, or those of a file in torchvision's format.

    Args:
      name: of a network that torchvision has, such as "resnet50".
      source: the tag of published weights (`model_info(name).weights`), "default" for torchvision's
        default, or the path of a `.safetensors` or torch file. Published files are downloaded once, into
        `$FLAXCNN_CACHE` or `~/.cache/flaxcnn`, and their SHA-256 is checked.
      num_classes: None for the classes of the file; 0 for no classifier; otherwise, where it differs from the
        file's, classifiers start anew.
      channels: of the images. As in timm, the first convolution is summed over its input for 1 channel, and
        repeated and scaled by 3 / channels for others.
      key: from which new classifiers start; `jax.random.key(0)` by default.
      **fields: further fields of `create_model`, such as `dtype`.

    Returns:
      The network and {"params": ..., "batch_stats": ...} in its `param_dtype`. `googlenet` comes with
      `transform_input`, as its images are to be normalised like those of the others, and without its auxiliary
      heads unless `aux_logits=True`.

    Raises:
      UserError: no such network, weights or file, a damaged file, no network connection, or weights that do not
        fit.
    """
    arrays = read_state_dict(_locate(name, source))
    names = torch_names(create_model(name))
    head = arrays.get(f"{names.torch_layer('head')}.bias")
    file_classes = model_info(name).num_classes if head is None else head.size
    shapes = {field: value for field, value in fields.items() if not field.endswith("dtype")}
    variables = from_torch(name, arrays, **{**shapes, "num_classes": file_classes})

    if name == "googlenet":
        fields = {"transform_input": channels == 3, **fields}
        if not fields.get("aux_logits"):
            for collection in variables.values():
                collection.pop("aux1", None), collection.pop("aux2", None)
    model = create_model(name, **{"num_classes": file_classes, **fields})
    if channels != 3:
        layer = variables["params"]
        for part in names.first.split("/"):
            layer = layer[part]
        layer["kernel"] = _fit_channels(layer["kernel"], channels)
    if num_classes not in (None, file_classes):
        model = create_model(name, **{**fields, "num_classes": num_classes})
        variables["params"] = _renew_heads(model, variables["params"], channels, key)
    return model, jax.tree.map(lambda value: jnp.asarray(value, model.param_dtype), variables)


def _locate(name: str, source: str | Path) -> Path:
    published = model_info(name).weights
    if not published:
        raise UserError(f"no weights of {name} are published; torchvision's networks have them (docs/models.md)")
    tags = {weights.tag: weights for weights in published}
    if source == "default":
        source = default_weights(name).tag
    if source in tags:
        return fetch(tags[source].file, tags[source].url)
    if Path(source).exists():
        return Path(source)
    hint = nearest(str(source), tags) or f"; the published weights are {', '.join(tags)}"
    raise UserError(f"{source} is neither a file nor published weights of {name}{hint}")


def _fit_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts a kernel (h, w, 3, features) so that the response to grey or repeated channels stays the same."""
    exact = kernel.astype(np.float64)
    if channels == 1:
        return exact.sum(axis=2, keepdims=True).astype(kernel.dtype)
    index = np.arange(channels) % kernel.shape[2]
    return (exact[:, :, index] * (kernel.shape[2] / channels)).astype(kernel.dtype)


def _renew_heads(model: Network, params: dict[str, Any], channels: int, key: jax.Array | None) -> dict[str, Any]:
    """Returns the parameters with every classifier at its start, the auxiliary ones too."""
    key = jax.random.key(0) if key is None else key
    size = max(model.minimum_size, 32)
    images = jnp.zeros((1, size, size, channels))
    if not model.num_classes:
        return {layer: value for layer, value in params.items() if layer not in ("head", "aux1", "aux2")}

    def start(key):
        fresh = model.init(key, images, train=False)["params"]
        return {layer: fresh[layer]["head"] if layer != "head" else fresh[layer] for layer in _with_heads(params)}

    for layer, fresh in jax.jit(start)(key).items():
        if layer == "head":
            params[layer] = fresh
        else:
            params[layer]["head"] = fresh
    return params


def _with_heads(params: dict[str, Any]) -> list[str]:
    return [layer for layer, value in params.items() if layer == "head" or "head" in value]
