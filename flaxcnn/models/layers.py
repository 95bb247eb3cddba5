"""What the families share: the base of every network, convolution with norm and activation, the classifier."""

import functools
import importlib
import math
import operator
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from flaxcnn.errors import UserError
from flaxcnn.models import initializers
from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.ops.convolution import convolution
from flaxcnn.ops.pooling import average_pool, max_pool

Array = jax.Array
Dtype = Any
Activation = Callable[[Array], Array]
Pooling = Callable[[Array], Array]
# A constructor of norms as a network is given it: `nn.LayerNorm`, or a partial of it with constants of its own. It
# takes `name`, `dtype`, `param_dtype` and `scale_init`, and what it returns maps an array to one of the same shape.
Norm = Callable[..., Callable[[Array], Array]]
# A constructor of layers with the network's own fields (dtypes, norm, mode) filled in, as blocks are given it.
Layer = Callable[..., nn.Module]


def group_norm(**fields: Any) -> Callable[[Array], Array]:
    """Constructs `nn.GroupNorm` of 32 groups (Wu and He 2018), or fewer where 32 does not divide the channels."""
    return lambda x: nn.GroupNorm(num_groups=math.gcd(32, x.shape[-1]), **fields)(x)


# What a configuration, which holds only text and numbers, may write for a field that takes a function.
NAMED: dict[str, dict[str, Callable]] = {
    "activation": {"relu": nn.relu, "sigmoid": nn.sigmoid, "tanh": jnp.tanh, "gelu": nn.gelu},
    "pooling": {
        "average": functools.partial(average_pool, window=2, stride=2),
        "max": functools.partial(max_pool, window=2, stride=2),
    },
    "norm": {
        "batch_norm": BatchNorm,
        "layer_norm": nn.LayerNorm,
        "group_norm": group_norm,
    },
}


class Partial(functools.partial):
    """A `functools.partial` that is equal to another one of the same function with equal arguments."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partial):
            return NotImplemented
        return (self.func, self.args, self.keywords) == (other.func, other.args, other.keywords)

    def __hash__(self) -> int:
        return hash((self.func, len(self.args), *sorted(self.keywords)))  # arguments need not have a hash

    def __reduce__(self) -> tuple:
        arguments = [_by_name(value) for value in self.args]
        keywords = {name: _by_name(value) for name, value in self.keywords.items()}
        return _rebuild_partial, (_by_name(self.func), arguments, keywords)


def _rebuild_partial(function: Any, arguments: list, keywords: dict[str, Any]) -> Partial:
    keywords = {name: _named(value) for name, value in keywords.items()}
    return Partial(_named(function), *map(_named, arguments), **keywords)


class _Name(NamedTuple):
    """Where a function is found."""

    module: str
    name: str


def _by_name(value: Any) -> Any:
    """Returns what pickles: for JAX's compiled functions, such as `nn.relu`, their names; otherwise the value."""
    name = _Name(getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
    is_plain = not callable(value) or isinstance(value, (type, types.FunctionType))
    try:
        return value if is_plain or _named(name) is not value else name
    except (ImportError, AttributeError, ValueError):
        return value


def _named(value: Any) -> Any:
    """Returns the function of a name, or another value as it is."""
    if not isinstance(value, _Name):
        return value
    return operator.attrgetter(value.name)(importlib.import_module(value.module))


class ConvNorm(nn.Module):
    """A convolution, its norm and its activation: parameters `conv` and, with a norm, `norm`.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel, in pixels.
      stride: distance between windows, in pixels.
      padding: zeros on each side, in pixels; by default half the kernel, which keeps the size at stride 1.
      groups: groups of channels that do not see each other.
      use_bias: whether the convolution has a bias; by default it has one where no norm follows.
      norm: a constructor of the norm, ready for use (`Network.bound_norm`), or None.
      activation: applied last, or None.
      scheme: the start of kernel and bias.
      scale_init: the start of the norm's scale.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool | None = None
    norm: Layer | None = None
    activation: Activation | None = nn.relu
    scheme: initializers.Scheme = initializers.HE_FAN_OUT
    scale_init: initializers.Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        fan_in = self.kernel_size**2 * x.shape[-1] // self.groups
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            self.stride,
            self.kernel_size // 2 if self.padding is None else self.padding,
            feature_group_count=self.groups,
            conv_general_dilated=convolution,
            use_bias=self.norm is None if self.use_bias is None else self.use_bias,
            kernel_init=self.scheme.kernel,
            bias_init=self.scheme.bias(fan_in),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)
        if self.norm is not None:
            x = self.norm(scale_init=self.scale_init, name="norm")(x)
        return x if self.activation is None else self.activation(x)


class Dense(nn.Module):
    """A fully connected layer whose bias, too, may start by its fan-in: parameters `kernel` and `bias`."""

    features: int
    scheme: initializers.Scheme
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, C) to (B, features)."""
        fan_in = x.shape[-1]
        kernel = self.param("kernel", self.scheme.kernel, (fan_in, self.features), self.param_dtype)
        bias = self.param("bias", self.scheme.bias(fan_in), (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + bias[None]


class Network(nn.Module):
    """The base of every network: one `forward`, seen as logits by `__call__` and as stage maps by `features`.

    A family defines `forward`, and calls its classifier `head`. What a network has of the further common fields
    (`dropout_rate`, `norm`, `bn_axis_name`, `remat`) it declares itself.

    Attributes:
      num_classes: length of the logits; 0 for the features that would enter the classifier.
      dtype: of the computation.
      param_dtype: of parameters; running statistics are float32, or float64 where the computation is.
    """

    num_classes: int = 1000
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Gives fields a form in which equal ones are equal, hash alike and can be copied."""
        for field, value in vars(self).copy().items():
            if isinstance(value, functools.partial):
                setattr(self, field, Partial(value))
            elif field in ("dtype", "param_dtype") and value is not None:
                setattr(self, field, jnp.dtype(value))
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        return {field: _by_name(value) for field, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({field: _named(value) for field, value in state.items()})

    @property
    def minimum_size(self) -> int:
        """The least height and width of the images, in pixels."""
        return 1

    def check_fields(self) -> None:
        """Raises `UserError` where the values of fields cannot work; `create_model` and every call do it."""
        for field in ("dropout_rate", "aux_dropout_rate"):
            if not 0 <= getattr(self, field, 0) <= 1:
                raise UserError(
                    f"{field} of {type(self).__name__} is a share of 0 to 1, got {getattr(self, field)}"
                )

    def check_positive(self, *fields: str) -> None:
        """Raises `UserError` unless the fields hold numbers above 0."""
        for field in fields:
            value = getattr(self, field)
            if not min(jax.tree.leaves(value), default=1) > 0:
                raise UserError(f"{field} of {type(self).__name__} must be above 0, got {value}")

    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the stage maps by name, in order, and the logits."""
        raise NotImplementedError

    def __call__(self, images: Array, train: bool) -> Array:
        """Maps images (B, H, W, C) to logits (B, num_classes): float32, or float64 if computed so.

        Raises:
          UserError: the images have another rank, or are smaller than `minimum_size`.
        """
        self._check(images)
        logits = self.forward(images, train)[1]
        return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)

    def features(self, images: Array, train: bool) -> OrderedDict[str, Array]:
        """Returns the map (B, H', W', C') after each stage by the stage's name, in order of depth."""
        self._check(images)
        # JAX would sort the keys of a plain dict on its way out of a compiled function.
        return OrderedDict(self.forward(images, train)[0])

    def run_block(self, block: nn.Module, inputs: Any, call: Callable[..., Array] | None = None) -> Array:
        """Returns `block(inputs)`, of which with `remat` only the inputs and the result stay for the backward pass.

        Args:
          block: a module made within `forward`, or the network itself, whose submodules `call` then makes.
          inputs: an array or a tree of them.
          call: what to run, as `call(block, inputs)`; by default the block's `__call__`.
        """
        call = call or type(block).__call__
        # Lifted as a method of the bound module, and not as a class of its own that wraps the block's: names,
        # keys and the calls that interceptors see are then the same either way.
        return nn.remat(call)(block, inputs) if self.remat else call(block, inputs)

    def bound_norm(self, train: bool) -> Layer | None:
        """Returns the constructor of this network's norm for training or inference, or None."""
        if self.norm is None:
            return None
        fields: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if isinstance(self.norm(parent=None), nn.BatchNorm):
            fields["use_running_average"] = not train
            fields["axis_name"] = self.bn_axis_name
            # Otherwise linen would start statistics in float32 and go on in float64.
            fields["force_float32_reductions"] = self.dtype != jnp.float64
        own = getattr(self.norm, "keywords", {})  # constants that a partial brings along stay
        return functools.partial(self.norm, **{field: fields[field] for field in fields if field not in own})

    def conv_norm(self, train: bool, **fields: Any) -> Layer:
        """Returns the constructor of `ConvNorm` with this network's norm and dtypes."""
        norm = self.bound_norm(train) if hasattr(self, "norm") else None
        return functools.partial(
            ConvNorm, **{"norm": norm, "dtype": self.dtype, "param_dtype": self.param_dtype, **fields}
        )

    @property
    def dense(self) -> Layer:
        """The constructor of `Dense` with this network's dtypes."""
        return functools.partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)

    def classify(self, x: Array, scheme: initializers.Scheme) -> Array:
        """Applies the classifier, or nothing without classes."""
        return self.dense(self.num_classes, scheme, name="head")(x) if self.num_classes else x

    def _check(self, images: Array) -> None:
        self.check_fields()
        name, least = type(self).__name__, self.minimum_size
        if images.ndim != 4:
            raise UserError(f"{name} takes images of shape (batch, height, width, channels), got {images.shape}")
        height, width = images.shape[1:3]
        if height < least or width < least:  # one by one: `min` of open sizes is none
            raise UserError(f"{name} takes images of at least {least}x{least} pixels, got {height}x{width}")


def imagenet_stem(conv: Layer, features: int, images: Array) -> Array:
    """Applies the 7x7/2 convolution and 3x3/2 max pooling of ResNet and DenseNet, which divide the size by 4."""
    return max_pool(conv(features, 7, stride=2, name="stem")(images), 3, 2, padding=1)


def dropout(x: Array, rate: float, train: bool) -> Array:
    """Drops values with a probability in training, from the `dropout` RNG."""
    return nn.Dropout(rate, deterministic=not train)(x)


def by_channel(values: Array) -> Array:
    """Maps a value for each channel (C,) to (1, 1, 1, C), to go with (B, H, W, C)."""
    return values[None, None, None]


def flatten(x: Array) -> Array:
    """Maps (B, H, W, C) to (B, H * W * C)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
