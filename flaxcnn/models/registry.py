"""The names of the networks: `create_model`, `list_models`, `model_info`."""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcnn.errors import UserError, nearest
from flaxcnn.models.layers import NAMED


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a named network without building it.

    Attributes:
      name: what `create_model` takes.
      summary: one line on what distinguishes this variant.
      paper: authors, title, year.
      module: the linen module class.
      fields: the module fields that make the variant.
      input_shape: (height, width, channels) of the images it was made for.
      minimum_size: smallest height and width, in pixels, that it accepts.
      num_classes: classes of the published network.
    """

    name: str
    summary: str
    paper: str
    module: type[nn.Module]
    fields: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    minimum_size: int
    num_classes: int

    @property
    def parameters(self) -> int:
        """Trainable parameters at `input_shape` and `num_classes`, counted without allocating them."""
        model = create_model(self.name)
        images = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


_MODELS: dict[str, ModelInfo] = {}


def register(name: str, module: type[nn.Module], *, fields: Mapping[str, Any] | None = None, **info: Any) -> None:
    """Adds a named network: `module(**fields)`, described by the other attributes of `ModelInfo`."""
    if name in _MODELS:
        raise ValueError(f"a model named {name!r} is registered already")
    _MODELS[name] = ModelInfo(name=name, module=module, fields=fields or {}, **info)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the registered names that match a shell wildcard (`*`, `?`, `[...]`), sorted."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def model_info(name: str) -> ModelInfo:
    """Returns what is known of a network.

    Raises:
      UserError: no network has that name; the message holds the nearest ones.
    """
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}{nearest(name, _MODELS)} (list_models() returns all)")
    return _MODELS[name]


def create_model(name: str, **fields: Any) -> nn.Module:
    """Builds a network by name, as a plain `flax.linen` module.

    Args:
      name: one of `list_models()`.
      **fields: fields of the module that differ from the variant's, such as `num_classes` (0 for pooled
        features) or `dtype`. Fields that take a function (`activation`, `pooling`, `norm`) and dtypes may be
        given by name, as configurations do: `activation="relu"`, `dtype="bfloat16"`.

    Raises:
      UserError: no such network, no such field, or a value of the wrong type.
    """
    info = model_info(name)
    annotations = {f.name: f.type for f in dataclasses.fields(info.module) if f.name not in ("parent", "name")}
    for field, value in fields.items():
        if field not in annotations:
            hint = nearest(field, annotations) or f"; it has {', '.join(annotations)}"
            raise UserError(f"{name} has no field {field!r}{hint}")
        fields[field] = _checked(name, field, value, annotations[field])
    return info.module(**{**info.fields, **fields})


def _checked(model: str, field: str, value: Any, annotation: Any) -> Any:
    """Turns the name of a function or dtype into it, and refuses a number of the wrong kind."""
    if field in NAMED:
        if isinstance(value, str) and value in NAMED[field]:
            return NAMED[field][value]
        if value is not None and not callable(value):
            raise UserError(f"{model} has no {field} {value!r}; write one of {', '.join(NAMED[field])}")
        return value
    if field.endswith("dtype"):
        try:
            dtype = jnp.dtype(value)
        except TypeError:
            dtype = None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f"{field} {value!r} is not a floating dtype; write float32, bfloat16, ...") from None
        return dtype
    kinds = {int: (int,), float: (int, float), bool: (bool,)}.get(annotation)
    if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and annotation is not bool)):
        raise UserError(f"{field} of {model} takes {annotation.__name__}, got {value!r}")
    if annotation is int and field == "num_classes" and value < 0:
        raise UserError(f"num_classes of {model} must be 0 (pooled features) or more, got {value}")
    return value
