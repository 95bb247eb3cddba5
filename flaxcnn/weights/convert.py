"""Weights between torchvision's state dicts and our variables, in plain NumPy, value for value."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.models.layers import Network
from flaxcnn.models.published import PUBLISHED
from flaxcnn.weights.torch_names import torch_names

StateDict = dict[str, np.ndarray]
Variables = dict[str, Any]

# Our name of an array and torch's.
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Torch counts the batches that a BatchNorm saw; nothing uses the number at its default momentum.
_COUNTER = "num_batches_tracked"
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One array on both sides.

    Attributes:
      path: ours, from the collection down.
      shape: ours.
      map_size: of a dense kernel over a flattened map, that map's height and width.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    map_size: int | None

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 4:  # height, width, in, out
            return value.transpose(3, 2, 0, 1)
        if self.map_size:
            size, inputs = self.map_size, value.shape[0]
            maps = value.reshape(size, size, inputs // size**2, -1)
            return maps.transpose(3, 2, 0, 1).reshape(-1, inputs)
        return value.T

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 4:
            return value.transpose(2, 3, 1, 0)
        if self.map_size:
            size, inputs = self.map_size, value.shape[1]
            maps = value.reshape(-1, inputs // size**2, size, size)
            return maps.transpose(2, 3, 1, 0).reshape(inputs, -1)
        return value.T

    @property
    def torch_shape(self) -> tuple[int, ...]:
        if len(self.shape) == 4:
            height, width, inputs, outputs = self.shape
            return outputs, inputs, height, width
        return self.shape[::-1]


def init_variables(model: Network, channels: int, key: jax.Array) -> Variables:
    """Returns a network's variables at their start; none of those that torch has depends on the images' size."""
    size = max(model.minimum_size, 32)
    return dict(model.init(key, jnp.zeros((1, size, size, channels)), train=False))


def _entries(model: Network, channels: int) -> dict[str, _Entry]:
    """Returns every array of a network by torch's name."""
    names = torch_names(model)
    variables = jax.eval_shape(functools.partial(init_variables, model, channels), jax.random.key(0))
    entries = {}
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables)
    for path, leaf in flat.items():
        layer = "/".join(path[1:-1])
        map_size = names.map_size(layer) if path[-1] == "kernel" else None
        entries[f"{names.torch_layer(layer)}.{_LEAVES[path[-1]]}"] = _Entry(path, leaf.shape, map_size)
    return entries


def _create(name: str, fields: Mapping[str, Any]) -> Network:
    if name not in PUBLISHED:
        raise UserError(f"{name} is no network of torchvision; those are {', '.join(PUBLISHED)}")
    return create_model(name, **fields)


def torch_shapes(name: str, *, channels: int = 3, **fields: Any) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of torchvision's state dict, without the counters `num_batches_tracked`."""
    return {key: entry.torch_shape for key, entry in _entries(_create(name, fields), channels).items()}


def from_torch(name: str, state_dict: Mapping[str, Any], *, channels: int = 3, **fields: Any) -> Variables:
    """Returns torchvision's weights as the variables of our network of the same name.

    Args:
      name: of a network that torchvision has, such as "resnet50".
      state_dict: what `model.state_dict()` returns there, as NumPy arrays, or anything that NumPy takes for one.
        The keys of old DenseNet files (`norm.1`) are understood. The auxiliary heads of `googlenet` are converted
        if any of them is there. `num_batches_tracked`, which changes nothing, is left out.
      channels: of the images.
      **fields: of `create_model`, where the shapes depend on them, such as `num_classes`.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter where the network has running statistics: NumPy arrays with
      the dtypes of the state dict.

    Raises:
      UserError: a network that torchvision does not have, or keys that are missing, unexpected or
        misshaped, by name.
    """
    state_dict = {_modern_key(key): value for key, value in state_dict.items()}
    if name == "googlenet" and any(key.startswith("aux") for key in state_dict):
        fields = {**fields, "aux_logits": True}
    entries = _entries(_create(name, fields), channels)
    counters = {f"{key.removesuffix('running_var')}{_COUNTER}" for key in entries if key.endswith("running_var")}
    arrays = {key: np.asarray(value) for key, value in state_dict.items() if key not in counters}
    _refuse_mismatch(name, arrays, {key: entry.torch_shape for key, entry in entries.items()})
    # Copies, because a state dict shares its memory with the torch module that trains on.
    flat = {entry.path: np.array(entry.from_torch(arrays[key]), order="C") for key, entry in entries.items()}
    return unflatten_dict(flat)


def to_torch(name: str, variables: Mapping[str, Any], **fields: Any) -> StateDict:
    """Returns the variables of our network as a state dict for torchvision's of the same name.

    It holds a `num_batches_tracked` of 0 for every BatchNorm, so that `load_state_dict(strict=True)` takes it
    after `torch.from_numpy` on each value. Classes, channels and auxiliary heads are seen from the variables.

    Args:
      name: of a network that torchvision has.
      variables: as `model.init` or `from_torch` returns them; dtypes are kept.
      **fields: of `create_model`, where the shapes depend on them.

    Raises:
      UserError: as in `from_torch`, with our paths.
    """
    flat = {
        path: np.asarray(leaf)
        for collection in ("params", "batch_stats")
        for path, leaf in flatten_dict({collection: variables.get(collection, {})}).items()
    }
    model = _create(name, fields)
    head = flat.get(("params", "head", "bias"))
    fields = {"num_classes": 0 if head is None else head.size, **fields}
    if name == "googlenet" and "aux1" in variables.get("params", {}):
        fields = {"aux_logits": True, **fields}
    first = flat.get(("params", *torch_names(model).first.split("/"), "kernel"))
    entries = _entries(_create(name, fields), 3 if first is None or first.ndim != 4 else first.shape[2])
    _refuse_mismatch(
        name,
        {"/".join(path): value for path, value in flat.items()},
        {"/".join(entry.path): entry.shape for entry in entries.values()},
    )
    state_dict = {}
    for key, entry in entries.items():
        state_dict[key] = np.array(entry.to_torch(flat[entry.path]), order="C")
        if key.endswith("running_var"):
            state_dict[key.removesuffix("running_var") + _COUNTER] = np.asarray(0, np.int64)
    return state_dict


def _modern_key(key: str) -> str:
    """DenseNet's published files carry the names that its layers had before torch 0.4."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)


def _refuse_mismatch(name: str, arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UserError` unless the arrays are those wanted, by key and shape."""

    def listed(keys: list[str]) -> str:
        rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
        return ", ".join(keys[:_LISTED]) + rest

    misshaped = [
        f"{key} {list(arrays[key].shape)} instead of {list(shape)}"
        for key, shape in wanted.items()
        if key in arrays and arrays[key].shape != shape
    ]
    kinds = {
        "missing": [key for key in wanted if key not in arrays],
        "unexpected": [key for key in arrays if key not in wanted],
        "misshaped": misshaped,
    }
    faults = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in kinds.items() if keys)
    if faults:
        hint = " (num_classes and channels say so where they are not 1000 and 3)" if misshaped else ""
        raise UserError(f"the weights do not fit {name}: {faults}{hint}")
