"""The names of the networks: `create_model`, `list_models`, `model_info`."""

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
from flaxcnn.models.layers import NAMED, Network
from flaxcnn.models.published import MEAN, PUBLISHED, STD, Weights, default_weights, imagenet_classes


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
      num_classes: classes of the published network.
      reported: the accuracy that the paper reports, as text, where no weights are published.
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
        """The least height and width that it accepts, in pixels."""
        return create_model(self.name).minimum_size

    @functools.cached_property
    def cost(self) -> Cost:
        """Parameters, multiply-adds and activations of one image at `input_shape`, without allocating anything."""
        return measure(create_model(self.name), self.input_shape)

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return self._counts[0]

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and dense layers, for one image."""
        return self._counts[1]

    @property
    def activations(self) -> int:
        """Elements that the convolutions put out, for one image."""
        return self._counts[2]

    @property
    def _counts(self) -> tuple[int, int, int]:
        """From the table where the network stands in it: tracing all of them takes a minute."""
        return _recorded_counts().get(self.name) or (self.cost.parameters, self.cost.macs, self.cost.activations)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The published weights, with accuracy and evaluation protocol, in order of publication."""
        return PUBLISHED.get(self.name, ())

    @property
    def accuracy(self) -> str:
        """The published accuracy: of the default weights, or else the paper's; empty where there is none."""
        if not self.weights:
            return self.reported
        weights = default_weights(self.name)
        size = "" if weights.crop == self.input_shape[0] else f" at {weights.crop} pixels"
        return f"{weights.top1:.3f} / {weights.top5:.3f} % top-1 / top-5 on ImageNet{size} ({weights.tag})"

    @property
    def mean(self) -> tuple[float, ...] | None:
        """The mean by channel that the published weights expect to be subtracted, of pixels in 0 to 1."""
        return MEAN if self.weights else None

    @property
    def std(self) -> tuple[float, ...] | None:
        """The standard deviation by channel that the published weights expect pixels to be divided by."""
        return STD if self.weights else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes that the published weights tell apart."""
        return imagenet_classes() if self.weights else None


@functools.cache
def _recorded_counts() -> dict[str, tuple[int, int, int]]:
    """Returns parameters, multiply-adds and activations by name, as `flaxcnn.inspect.count_table` wrote them."""
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
    """Adds a named network: `module(num_classes=num_classes, **fields)`, described as in `ModelInfo`."""
    if name in _MODELS:
        raise ValueError(f"a model named {name!r} is registered already")
    fields = {"num_classes": num_classes, **(fields or {})}
    _MODELS[name] = ModelInfo(name, summary, paper, module, fields, input_shape, num_classes, reported)


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


def create_model(name: str, **fields: Any) -> Network:
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
    model = info.module(**{**info.fields, **fields})
    model.check_fields()
    return model


def _checked(model: str, field: str, value: Any, annotation: Any) -> Any:
    """Turns the name of a function or dtype into it, and refuses a number of the wrong kind."""
    if field in NAMED:
        if isinstance(value, str) and value in NAMED[field]:
            return NAMED[field][value]
        if not callable(value) and not (value is None and field == "norm"):
            raise UserError(f"{model} has no {field} {value!r}; write one of {', '.join(NAMED[field])}")
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
        return value  # of some other type, which its module checks
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
    """Returns a number, or nested lists of them as tuples, in the annotated type; None where it is another."""
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
