"""Conversion between torchvision's state dicts and variables of this package; values do not change."""

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
from flaxcnn.models.network import Network
from flaxcnn.models.published import PUBLISHED
from flaxcnn.weights.torch_names import torch_names

StateDict = dict[str, np.ndarray]
Variables = dict[str, Any]

# Names of arrays in this package, with their names in torch.
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# In torch, BatchNorm counts batches. With a fixed momentum, which is the default, the count is not used.
_COUNTER = "num_batches_tracked"
# Maximum number of names in an error message.
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One array, with the conversion between its layouts in this package and in torch.

    Attributes:
      path: path in the variables, starting with the collection.
      shape: shape in the variables.
      map_size: for the kernel of a dense layer whose input is a flattened feature map, the height and width of that
        feature map; otherwise None.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    map_size: int | None

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 4:  # (height, width, inputs, outputs)
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
    """Initializes a network's variables; for torchvision's networks, shapes do not depend on the image size."""
    size = max(model.minimum_size, 32)
    return dict(model.init(key, jnp.zeros((1, size, size, channels)), train=False))


def _entries(model: Network, channels: int) -> dict[str, _Entry]:
    """Returns an entry for each array of a network, keyed by the name of the array in torch."""
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
        raise UserError(f"torchvision has no network {name}; it has {', '.join(PUBLISHED)}")
    return create_model(name, **fields)


def torch_shapes(name: str, *, channels: int = 3, **fields: Any) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the arrays in torchvision's state dict, except `num_batches_tracked`.

    Arguments and errors are those of `from_torch`.
    """
    return {key: entry.torch_shape for key, entry in _entries(_create(name, fields), channels).items()}


def from_torch(name: str, state_dict: Mapping[str, Any], *, channels: int = 3, **fields: Any) -> Variables:
    """Converts a state dict of a torchvision network to variables of the network with the same name here.

    Args:
      name: name of a network that torchvision has, such as "resnet50".
      state_dict: result of `model.state_dict()` in torch, with values that `numpy.asarray` can convert. Keys of old
        DenseNet files (`norm.1`) are accepted. The auxiliary heads of `googlenet` are converted if any of their
        keys is present. `num_batches_tracked`, which has no effect, is ignored.
      channels: number of channels of the images.
      **fields: fields of `create_model` that the shapes depend on, such as `num_classes`.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter only if the network has running statistics. The leaves are
      NumPy arrays with the dtypes of the state dict.

    Raises:
      UserError: torchvision has no such network, or keys are missing or unexpected, or arrays have wrong shapes;
        the message lists them.
    """
    state_dict = {_modern_key(key): value for key, value in state_dict.items()}
    if name == "googlenet" and any(key.startswith("aux") for key in state_dict):
        fields = {**fields, "aux_logits": True}
    entries = _entries(_create(name, fields), channels)
    counters = {f"{key.removesuffix('running_var')}{_COUNTER}" for key in entries if key.endswith("running_var")}
    arrays = {key: np.asarray(value) for key, value in state_dict.items() if key not in counters}
    _refuse_mismatch(name, arrays, {key: entry.torch_shape for key, entry in entries.items()})
    # Copies, because a state dict shares its memory with a torch module, which may be trained further.
    flat = {entry.path: np.array(entry.from_torch(arrays[key]), order="C") for key, entry in entries.items()}
    return unflatten_dict(flat)


def to_torch(name: str, variables: Mapping[str, Any], **fields: Any) -> StateDict:
    """Converts variables to a state dict of the torchvision network with the same name.

    Classes, channels and auxiliary heads are inferred from the variables. Every BatchNorm gets a
    `num_batches_tracked` of 0. After `torch.from_numpy` on each value, `load_state_dict(strict=True)` accepts the
    state dict.

    Args:
      name: name of a network that torchvision has.
      variables: variables as returned by `model.init` or `from_torch`.
      **fields: fields of `create_model` that the shapes depend on.

    Returns:
      NumPy arrays with the dtypes of the variables, by their names in torch.

    Raises:
      UserError: torchvision has no such network, or arrays are missing or unexpected or have wrong shapes; the
        message lists their paths in the variables.
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
    """Returns a key with current layer names; published DenseNet files have the names of torch before 0.4."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)


def _refuse_mismatch(name: str, arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UserError` unless the arrays have the wanted names and shapes."""

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
        hint = " (pass num_classes and channels if they are not 1000 and 3)" if misshaped else ""
        raise UserError(f"the weights do not fit {name}: {faults}{hint}")
