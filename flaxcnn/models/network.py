"""The base class of all networks, which map images to logits and feature maps."""

import functools
import importlib
import operator
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxcnn.errors import UserError
from flaxcnn.models.initializers import LayerInitializer
from flaxcnn.models.layers import Array, ConvNorm, Dense, Dtype, Layer


class Network(nn.Module):
    """Base class of all networks: `__call__` returns the logits, `features` returns the feature maps of the stages.

    Subclasses define `forward`, which returns both, and name their classifier `head`. A subclass that uses one of
    the following common fields declares it:

      norm: constructor of the norms, or None.
      bn_axis_name: name of the mapped axis over which BatchNorm averages its statistics, or None.
      dropout_rate: probability of dropping a value in training.
      remat: whether each block is rematerialized in the backward pass. This saves memory (but not on CPUs, where
        XLA undoes it), takes about a third more compute, and does not change values.

    Attributes:
      num_classes: number of classes; with 0 the network returns the input of the classifier.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters. Running statistics are float32, or float64 if `dtype` is float64.
    """

    num_classes: int = 1000
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Converts partials and dtypes so that networks with equal fields are equal, hash equally and pickle."""
        for field, value in vars(self).copy().items():
            if isinstance(value, functools.partial):
                setattr(self, field, _Partial(value))
            elif field in ("dtype", "param_dtype") and value is not None:
                setattr(self, field, jnp.dtype(value))
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        return {field: _to_picklable(value) for field, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({field: _from_picklable(value) for field, value in state.items()})

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images, in pixels."""
        return 1

    def check_fields(self) -> None:
        """Raises `UserError` if a field has an invalid value; `create_model` and every call run this check."""
        for field in ("dropout_rate", "aux_dropout_rate"):
            if not 0 <= getattr(self, field, 0) <= 1:
                raise UserError(
                    f"{field} of {type(self).__name__} is a probability from 0 to 1, got {getattr(self, field)}"
                )

    def check_positive(self, *fields: str) -> None:
        """Raises `UserError` unless all numbers in the named fields are above 0."""
        for field in fields:
            value = getattr(self, field)
            if not min(jax.tree.leaves(value), default=1) > 0:
                raise UserError(f"{field} of {type(self).__name__} must be above 0, got {value}")

    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps by stage name, in order of depth, and the logits."""
        raise NotImplementedError

    def __call__(self, images: Array, train: bool) -> Array:
        """Maps images (B, H, W, C) to logits (B, num_classes), float32, or float64 if `dtype` is float64.

        Raises:
          UserError: the images do not have four axes, or are smaller than `minimum_size`.
        """
        self._check(images)
        logits = self.forward(images, train)[1]
        return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)

    def features(self, images: Array, train: bool) -> OrderedDict[str, Array]:
        """Returns the feature map (B, H', W', C') after each stage, by stage name and in order of depth."""
        self._check(images)
        # `jax.jit` sorts the keys of a plain dict that a function returns.
        return OrderedDict(self.forward(images, train)[0])

    def run_block(self, block: nn.Module, inputs: Any, call: Callable[..., Array] | None = None) -> Array:
        """Applies a block; with `remat`, its intermediate activations are recomputed in the backward pass.

        Args:
          block: a module created within `forward`, or the network itself if `call` creates submodules of the
            network.
          inputs: an array or a tree of arrays.
          call: function called as `call(block, inputs)`; by default the block's `__call__`.
        """
        call = call or type(block).__call__
        # `nn.remat` is applied to a method of the bound module and not to the module class, so that parameter
        # names, RNG keys and intercepted method calls do not depend on `remat`.
        return nn.remat(call)(block, inputs) if self.remat else call(block, inputs)

    def bound_norm(self, train: bool) -> Layer | None:
        """Returns the constructor of the network's norm with dtypes and train mode bound; None without a norm."""
        if self.norm is None:
            return None
        fields: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if isinstance(self.norm(parent=None), nn.BatchNorm):
            fields["use_running_average"] = not train
            fields["axis_name"] = self.bn_axis_name
            # Otherwise linen would initialize statistics in float32 and update them in float64.
            fields["force_float32_reductions"] = self.dtype != jnp.float64
        own = getattr(self.norm, "keywords", {})  # arguments that a partial fixes take precedence
        return functools.partial(self.norm, **{field: fields[field] for field in fields if field not in own})

    def conv_norm(self, train: bool, **fields: Any) -> Layer:
        """Returns the constructor `ConvNorm` with the network's norm and dtypes, and with `fields`, bound."""
        norm = self.bound_norm(train) if hasattr(self, "norm") else None
        return functools.partial(
            ConvNorm, **{"norm": norm, "dtype": self.dtype, "param_dtype": self.param_dtype, **fields}
        )

    @property
    def dense(self) -> Layer:
        """The constructor `Dense` with the network's dtypes bound."""
        return functools.partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)

    def classify(self, x: Array, initializer: LayerInitializer) -> Array:
        """Applies the classifier, a dense layer named `head`; returns `x` if `num_classes` is 0."""
        return self.dense(self.num_classes, initializer, name="head")(x) if self.num_classes else x

    def _check(self, images: Array) -> None:
        self.check_fields()
        name, minimum = type(self).__name__, self.minimum_size
        if images.ndim != 4:
            raise UserError(f"{name} takes images of shape (batch, height, width, channels), got {images.shape}")
        height, width = images.shape[1:3]
        if height < minimum or width < minimum:  # `min` does not support symbolic sizes
            raise UserError(f"{name} takes images of at least {minimum}x{minimum} pixels, got {height}x{width}")


class _Partial(functools.partial):
    """A `functools.partial` that compares equal to another one with the same function and equal arguments."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Partial):
            return NotImplemented
        return (self.func, self.args, self.keywords) == (other.func, other.args, other.keywords)

    def __hash__(self) -> int:
        return hash((self.func, len(self.args), *sorted(self.keywords)))  # arguments may be unhashable

    def __reduce__(self) -> tuple:
        arguments = [_to_picklable(value) for value in self.args]
        keywords = {name: _to_picklable(value) for name, value in self.keywords.items()}
        return _rebuild_partial, (_to_picklable(self.func), arguments, keywords)


def _rebuild_partial(function: Any, arguments: list[Any], keywords: dict[str, Any]) -> _Partial:
    keywords = {name: _from_picklable(value) for name, value in keywords.items()}
    return _Partial(_from_picklable(function), *map(_from_picklable, arguments), **keywords)


class _ImportPath(NamedTuple):
    """Module and qualified name from which a function can be imported."""

    module: str
    name: str


def _to_picklable(value: Any) -> Any:
    """Returns the value, or its import path if it is a jit-compiled function, which cannot be pickled."""
    path = _ImportPath(getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
    is_plain = not callable(value) or isinstance(value, (type, types.FunctionType))
    try:
        return value if is_plain or _from_picklable(path) is not value else path
    except (ImportError, AttributeError, ValueError):
        return value


def _from_picklable(value: Any) -> Any:
    """Imports the function if the value is an import path; returns any other value unchanged."""
    if not isinstance(value, _ImportPath):
        return value
    return operator.attrgetter(value.name)(importlib.import_module(value.module))
