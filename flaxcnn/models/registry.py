"""The registry of named networks: `create_model`, `list_models`, `model_info`."""

import dataclasses
import fnmatch
import functools
import math
import numbers
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from flaxcnn.errors import UserError, nearest
from flaxcnn.models.cost import Cost, measure
from flaxcnn.models.layers import NAMED_FUNCTIONS
from flaxcnn.models.network import Network
from flaxcnn.models.published import MEAN, PUBLISHED, STD, Weights, default_weights, imagenet_classes


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """Description of a named network, available without building it.

    Attributes:
      name: name that `create_model` takes.
      summary: differences from the other variants of the family, in one line.
      paper: authors, title and year of the paper.
      module: linen module class.
      fields: fields of `module` that define the variant.
      input_shape: (height, width, channels) of the images that the network was designed for.
      num_classes: number of classes of the published network.
      reported: accuracy that the paper reports, as text; `accuracy` returns it if no weights are published.
    """

    name: str
    summary: str
    paper: str
    module: type[Network]
    fields: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    num_classes: int
    reported: str

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images, in pixels."""
        return create_model(self.name).minimum_size

    @functools.cached_property
    def cost(self) -> Cost:
        """Cost per layer and in total for one image of `input_shape`; computed without allocating arrays."""
        return measure(create_model(self.name), self.input_shape)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return self._counts[0]

    @property
    def macs(self) -> int:
        """Number of multiply-adds of convolutions and dense layers for one image of `input_shape`."""
        return self._counts[1]

    @property
    def activations(self) -> int:
        """Number of output elements of the convolutions for one image of `input_shape`."""
        return self._counts[2]

    @property
    def _counts(self) -> tuple[int, int, int]:
        """Parameters, multiply-adds and activations; recorded in a table, because tracing all networks is slow."""
        return _recorded_counts().get(self.name) or (self.cost.parameters, self.cost.macs, self.cost.activations)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """Published weights in order of publication, with their accuracy and evaluation protocol."""
        return PUBLISHED.get(self.name, ())

    @property
    def accuracy(self) -> str:
        """Accuracy of the default weights, or otherwise the accuracy that the paper reports; may be empty."""
        if not self.weights:
            return self.reported
        weights = default_weights(self.name)
        size = "" if weights.crop == self.input_shape[0] else f" at {weights.crop} pixels"
        return f"{weights.top1:.3f} / {weights.top5:.3f} % top-1 / top-5 on ImageNet{size} ({weights.tag})"

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Channel means, for pixels in [0, 1], by which published weights expect normalized images; else None."""
        return MEAN if self.weights else None

    @property
    def std(self) -> tuple[float, ...] | None:
        """Channel standard deviations for the normalization by `mean`; None without published weights."""
        return STD if self.weights else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names of the published weights, in the order of the logits; None without published weights."""
        return imagenet_classes() if self.weights else None


@functools.cache
def _recorded_counts() -> dict[str, tuple[int, int, int]]:
    """Returns parameters, multiply-adds and activations by network name, as `inspect.count_table` recorded them."""
    lines = Path(__file__).with_name("counts.txt").read_text(encoding="ascii").splitlines()
    rows = (line.split() for line in lines)
    return {name: (int(parameters), int(macs), int(activations)) for name, parameters, macs, activations in rows}


_MODELS: dict[str, ModelInfo] = {}


def register(
    name: str,
    module: type[Network],
    *,
    summary: str,
    paper: str,
    input_shape: tuple[int, int, int],
    num_classes: int = 1000,
    fields: Mapping[str, Any] | None = None,
    reported: str = "",
) -> None:
    """Registers the network `module(num_classes=num_classes, **fields)`; other arguments are as in `ModelInfo`."""
    if name in _MODELS:
        raise ValueError(f"a model named {name!r} is registered already")
    fields = {"num_classes": num_classes, **(fields or {})}
    _MODELS[name] = ModelInfo(name, summary, paper, module, fields, input_shape, num_classes, reported)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names of registered networks that match a shell pattern (`*`, `?`, `[...]`)."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def model_info(name: str) -> ModelInfo:
    """Returns the description of a named network, without building it.

    Raises:
      UserError: no network has that name; the message suggests similar names.
    """
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}{nearest(name, _MODELS)} (list_models() returns all)")
    return _MODELS[name]


def create_model(name: str, **fields: Any) -> Network:
    """Builds a network by name, as a plain `flax.linen` module.

    Args:
      name: one of `list_models()`.
      **fields: module fields, such as `num_classes` (0 for pooled features) or `dtype`, which override those that
        define the variant. Functions (`activation`, `pooling`, `norm`) and dtypes may be given by name, as in
        configurations: `activation="relu"`, `dtype="bfloat16"`.

    Raises:
      UserError: the network or a field does not exist, or a value has the wrong type or is out of range.
    """
    info = model_info(name)
    annotations = {f.name: f.type for f in dataclasses.fields(info.module) if f.name not in ("parent", "name")}
    for field, value in fields.items():
        if field not in annotations:
            hint = nearest(field, annotations) or f"; it has {', '.join(annotations)}"
            raise UserError(f"{name} has no field {field!r}{hint}")
        fields[field] = _checked(name, field, value, annotations[field])
    model = info.module(**{**info.fields, **fields})
    model.check_fields()
    return model


def _checked(model: str, field: str, value: Any, annotation: Any) -> Any:
    """Returns a field's value, with names of functions and dtypes resolved; raises `UserError` if it is invalid."""
    if field in NAMED_FUNCTIONS:
        if isinstance(value, str) and value in NAMED_FUNCTIONS[field]:
            return NAMED_FUNCTIONS[field][value]
        if not callable(value) and not (value is None and field == "norm"):
            raise UserError(f"{model} has no {field} {value!r}; write one of {', '.join(NAMED_FUNCTIONS[field])}")
        return value
    if field.endswith("dtype"):
        try:
            dtype = jnp.dtype(value)
        except TypeError:
            dtype = None
        if value is None or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f"{field} {value!r} is not a floating dtype; write float32, bfloat16, ...") from None
        if dtype == jnp.float64 and jnp.result_type(float) != jnp.float64:
            raise UserError(f"{field} is float64, which JAX computes only with JAX_ENABLE_X64=1 set")
        return dtype
    if typing.get_origin(annotation) is Literal:
        if value not in typing.get_args(annotation):
            choices = ", ".join(typing.get_args(annotation))
            raise UserError(f"{model} has no {field} {value!r}; write one of {choices}")
        return value
    if annotation not in (int, float, bool) and typing.get_origin(annotation) is not tuple:
        return value  # the module checks values of other types
    number = _as_number(value, annotation)
    if number is None:
        kind = _NUMBERS.get(annotation, "lists of numbers").format(field=field)
        raise UserError(f"{field} of {model} takes {kind}, got {value!r}")
    if annotation in (int, float) and number < 0:
        hint = " (pooled features) or more" if field == "num_classes" else " or more"
        raise UserError(f"{field} of {model} must be 0{hint}, got {value}")
    return number


_NUMBERS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple[int, ...]: "lists of whole numbers (such as {field}=1,1,1)",
    tuple[bool, ...]: "values of true or false",
}


def _as_number(value: Any, annotation: Any) -> Any:
    """Returns a number as the annotated type, or nested lists of numbers as tuples; None if the type is wrong."""
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, (list, tuple)):
            return None
        items = [_as_number(item, typing.get_args(annotation)[0]) for item in value]
        return None if any(item is None for item in items) else tuple(items)
    kind = {int: numbers.Integral, float: numbers.Real, bool: bool}[annotation]
    if not isinstance(value, kind) or (isinstance(value, bool) and annotation is not bool):
        return None
    if not math.isfinite(value):
        return None
    return value if annotation is float else annotation(value)
