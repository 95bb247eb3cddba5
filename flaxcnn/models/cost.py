"""Parameters, multiply-adds and activations per layer, computed by tracing with shapes; no array is allocated."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn, Var, jaxprs_in_params

from flaxcnn.ops import stock_operations


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    A layer is a module with its own parameters or running statistics, dropout, or a function such as ReLU.

    Attributes:
      path: path of the module and of its parameters, such as "stage1_block1/conv1/conv"; for a function, path of
        the module that calls it.
      kind: class name of the module, or name of the function's operation, such as "MaxPool".
      output_shape: shape of the output, including the batch axis.
      output_bytes: size of the output, in bytes.
      window: height and width of the kernel or pooling window, in pixels, or None.
      strides: strides of the kernel or pooling window along rows and columns, in pixels, or None.
      groups: channel groups of a convolution; 1 for other layers.
      parameters: number of trainable elements.
      statistics: number of elements of running statistics.
      macs: multiply-adds of one call with the whole batch.
      activations: number of output elements of a convolution; 0 for other layers.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    output_bytes: int
    window: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    groups: int = 1
    parameters: int = 0
    statistics: int = 0
    macs: int = 0
    activations: int = 0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs of all layers, in the order of computation, and their sums over the network.

    The sums are defined as in `LayerCost`; `tensors` is the number of trainable arrays.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    statistics: int
    tensors: int
    macs: int
    activations: int
    output_bytes: int


def measure(model: nn.Module, input_shape: tuple[int, int, int], *, batch: int = 1) -> Cost:
    """Returns the cost of a forward pass in inference, per layer and in total.

    Multiply-adds are counted for convolutions and dense layers: one per kernel element and output position.
    Activations are the output elements of convolutions, as in Radosavovic et al. 2020. Heads that run only in
    training count as parameters, but are not listed as layers.

    Args:
      model: a network of this package.
      input_shape: (height, width, channels) of one image.
      batch: number of images.
    """
    modules: list[nn.Module] = []
    training_only: list[str] = []

    def mark(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, "/".join(context.module.path)
        if getattr(module, "training_only", False):
            training_only.append(path)
        result = call(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(result, jax.Array):
            return result
        modules.append(module)
        return checkpoint_name(result, str(len(modules) - 1))

    def initialize(images: jax.Array) -> tuple[jax.Array, Mapping]:
        return model.init_with_output(jax.random.key(0), images, train=False)

    images = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
    with nn.intercept_methods(mark), stock_operations():
        program, (_, variables) = jax.make_jaxpr(initialize, return_shape=True)(images)
    params, batch_stats = (_by_layer(variables.get(kind, {})) for kind in ("params", "batch_stats"))

    layers: list[LayerCost] = []
    (image,) = program.jaxpr.invars
    for path, call, output in _calls(program.jaxpr, modules, {*params, *batch_stats}, {image: image}):
        if any(f"{path}/".startswith(f"{head}/") for head in training_only):
            continue
        if call.kind == "AdaptiveAvgPool" and layers[-1].kind == call.kind:
            layers.pop()  # `adaptive_average_pool` pools one axis after the other
        own, statistics = params.get(path, {}), batch_stats.get(path, {})
        kernel = own.get("kernel")
        layers.append(
            LayerCost(
                path=path,
                kind=call.kind,
                window=call.window,
                strides=call.strides,
                groups=call.groups,
                output_shape=output.shape,
                parameters=sum(leaf.size for leaf in own.values()),
                statistics=sum(leaf.size for leaf in statistics.values()),
                macs=0 if kernel is None else output.size // output.shape[-1] * kernel.size,
                activations=output.size if kernel is not None and kernel.ndim > 2 else 0,
                output_bytes=output.size * output.dtype.itemsize,
            )
        )
    leaves = jax.tree.leaves(params)
    return Cost(
        layers=tuple(layers),
        parameters=sum(leaf.size for leaf in leaves),
        statistics=sum(leaf.size for leaf in jax.tree.leaves(batch_stats)),
        tensors=len(leaves),
        macs=sum(layer.macs for layer in layers),
        activations=sum(layer.activations for layer in layers),
        output_bytes=sum(layer.output_bytes for layer in layers),
    )


def _by_layer(collection: Mapping) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the arrays of a variable collection, keyed by the path of their layer and then by their name."""
    layers: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    flat: dict[tuple[str, ...], Any] = flatten_dict(collection)
    for path, leaf in flat.items():
        layers.setdefault("/".join(path[:-1]), {})[path[-1]] = leaf
    return layers


class _Call(NamedTuple):
    """Operation of a layer; the fields are those of `LayerCost`."""

    kind: str
    window: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    groups: int = 1


def _calls(
    jaxpr: Jaxpr, modules: Sequence[nn.Module], owners: set[str], sources: dict[Var, Var], parent: str = ""
) -> Iterator[tuple[str, _Call, Any]]:
    """Yields path, operation and output of each layer of a jaxpr, in order.

    Args:
      jaxpr: the jaxpr. `checkpoint_name` tags the result of each module call with the number of the call.
      modules: the module of each numbered call. The last one is the network, whose call ends last.
      owners: paths of the modules that have their own parameters or statistics.
      sources: maps each variable that depends on the images to the output of the layer it was computed from; the
        variables of the jaxpr are added.
      parent: path of the module that calls the jaxpr.
    """
    seen: set[str] = set()  # operations since the last layer
    for equation in jaxpr.eqns:
        inputs = [sources[value] for value in equation.invars if isinstance(value, Var) and value in sources]
        if not inputs:
            continue  # the operation computes or initializes parameters
        operation, result = equation.primitive.name, equation.outvars[0]
        sources.update(dict.fromkeys(equation.outvars, inputs[0]))
        if operation == "name" and equation.params["name"].isdecimal():
            module = modules[int(equation.params["name"])]
            path = "/".join(module.path)
            if path in owners:
                yield path, _module_call(module), result.aval
                sources[result] = result
                seen.clear()
            elif isinstance(module, nn.Dropout) and module.rate:
                yield "/".join(module.path[:-1]), _Call("Dropout"), result.aval
            continue
        path = f"{parent}/{module_path(equation, type(modules[-1]).__name__)}".strip("/")
        if path in owners:
            continue
        seen.add(operation)
        if call := _function_call(equation, len(inputs), joins=len({*inputs}) > 1, seen=seen):
            yield path, call, result.aval
            sources[result] = result
            seen.clear()
            continue
        for inner in jaxprs_in_params(equation.params):
            outer = equation.invars[len(equation.invars) - len(inner.invars) :]
            pairs = zip(inner.invars, outer, strict=True)
            inner_sources = {v: sources[value] for v, value in pairs if isinstance(value, Var) and value in sources}
            calls = list(_calls(inner, modules, owners, inner_sources, path))
            yield from calls
            if calls:
                sources[result] = result


# Names of activation layers, by the name of the jit-compiled function.
_ACTIVATIONS = {"relu": "ReLU", "relu6": "ReLU6", "silu": "SiLU", "hard_silu": "HardSwish", "sigmoid": "Sigmoid"}


def _module_call(module: nn.Module) -> _Call:
    if isinstance(module, nn.Conv):
        window = np.atleast_1d(module.kernel_size)
        strides = np.broadcast_to(module.strides or 1, window.shape)
        return _Call("Conv", tuple(window.tolist()), tuple(strides.tolist()), module.feature_group_count)
    return _Call(type(module).__name__)


def _function_call(equation: JaxprEqn, inputs: int, *, joins: bool, seen: set[str]) -> _Call | None:
    """Returns the layer that an operation outside of modules completes, or None.

    Args:
      equation: the operation.
      inputs: number of inputs of the operation that depend on the images.
      joins: whether these inputs come from more than one layer.
      seen: names of the operations since the last layer, including this one.
    """
    operation, fields = equation.primitive.name, equation.params
    types: tuple[Any, Any] = equation.invars[0].aval, equation.outvars[0].aval
    before, after = types[0].ndim, types[1].ndim
    match operation:
        case "jit" if fields["name"] in _ACTIVATIONS:
            return _Call(_ACTIVATIONS[fields["name"]])
        case "logistic":
            return _Call("Sigmoid")
        case "tanh" if "integer_pow" not in seen:  # otherwise an approximation of GELU
            return _Call("Tanh")
        case "mul" if inputs == 2 and not joins and not seen.isdisjoint(("tanh", "erfc")):
            return _Call("GELU")
        case "mul" | "div" if (
            inputs == 2 and not joins and "square" in seen and not seen.isdisjoint(("exp", "pow"))
        ):
            return _Call("LocalResponseNorm")
        case "reduce_window_max" | "reduce_window_sum" if fields["window_dimensions"][-1] == 1:
            kind = "MaxPool" if operation == "reduce_window_max" else "AvgPool"
            return _Call(kind, fields["window_dimensions"][1:3], fields["window_strides"][1:3])
        case "reduce_sum" if before == 4 and fields["axes"] == (1, 2):
            return _Call("GlobalAvgPool")
        case "reduce_sum" if "square" in seen:
            return _Call("SquaredDistance")
        case "div" if "dot_general" in seen:
            return _Call("AdaptiveAvgPool")
        case "reshape" if (before, after) == (4, 2):
            return _Call("Flatten")
        case "concatenate" if joins:
            return _Call("Concat")
        case "add" if joins:
            return _Call("Add")
        case "mul" if joins:
            return _Call("Scale")
    return None


def module_path(equation: JaxprEqn, network: str) -> str:
    """Returns the path, such as "stem/conv", of the module that called an operation.

    Args:
      equation: the operation.
      network: class name of the network, with which Flax starts the path.
    """
    # Flax records the names of modules and methods: "ResNet/ResNet.forward/stem/conv".
    names = str(equation.source_info.name_stack).split("/")
    return "/".join(name for name in names if name not in ("", network) and "." not in name and "(" not in name)
