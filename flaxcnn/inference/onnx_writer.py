"""A network as an ONNX graph, written from its trace: convolutions see NCHW, and what can be computed now is.

The trace holds JAX's own operations alone (`flaxcnn.ops.stock_operations`), so that any network made of the
operations below can be written, and not only those of this package.
"""

import collections
import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from onnx import TensorProto, helper, numpy_helper

from flaxcnn.atomic import write_whole
from flaxcnn.errors import UserError
from flaxcnn.models.cost import module_path
from flaxcnn.ops import stock_operations

OPSET = 18


@dataclasses.dataclass(frozen=True)
class _Constant:
    """What is known when the graph is written; `name` is that of the parameter it was made from, or ""."""

    value: np.ndarray
    name: str = ""


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A value of the graph that stands for an array of the trace.

    Attributes:
      name: in the graph.
      order: for each axis of the graph's value the axis of the array, or None for an axis of size 1 that the array
        does not have.
      shape: of the array; 1 where it is broadcast only by those that use it.
      factor: by which the value is still to be multiplied.
      flattened: the value (N, C, H, W) of which the array is the flattening in the order (N, H * W * C).
    """

    name: str
    order: tuple[int | None, ...]
    shape: tuple[Any, ...]
    factor: float = 1.0
    flattened: "_Tensor | None" = None


_Value = _Constant | _Tensor
_Order = Sequence[int | None]
_Shape = Sequence[Any]


def to_onnx(
    function: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: jax.ShapeDtypeStruct,
    *,
    network: str,
    probabilities: bool,
) -> onnx.ModelProto:
    """Returns `function(variables, images)` as a model that computes in float32.

    Its input is `images`, its output `logits` or, after a softmax, `probabilities`.

    Args:
      function: from variables and images to logits (N, classes).
      variables: a tree of arrays, which become the weights of the model.
      images: (N, H, W, C), with a symbolic N.
      network: class name of the network.
      probabilities: whether a softmax follows.

    Raises:
      UserError: an operation that this writer does not know.
    """
    with stock_operations():
        program = jax.make_jaxpr(function)(variables, images)
    writer = _Writer(network)
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    weights = [_Constant(np.asarray(leaf), _weight_name(path)) for path, leaf in leaves]
    (result,) = writer.run(
        program.jaxpr, program.consts, [*weights, _Tensor("images", tuple(range(images.ndim)), images.shape)]
    )
    output = "probabilities" if probabilities else "logits"
    if isinstance(result, _Constant):
        raise UserError(f"{network} gives the same for all images")
    result = writer.plain(writer.expanded(result, program.out_avals[0].shape))
    if probabilities:
        result = writer.emit("Softmax", [result], result.order, result.shape, axis=1)
    nodes = _with_biases(writer.nodes, writer.weights)
    _rename(nodes, result.name, output)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        network,
        [_value_info("images", images.shape, _dtype(images.dtype))],
        [_value_info(output, result.shape, TensorProto.FLOAT)],
        [numpy_helper.from_array(value, name) for name, value in writer.weights.items() if name in used],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="flaxcnn",
    )


def save(model: onnx.ModelProto, path: Path, data: Path | None) -> None:
    """Writes a model whole or not at all, its weights into a file beside it if one is named."""
    if data is None:
        write_whole(path, model.SerializeToString())
        return
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        onnx.save_model(model, f"{folder}/{path.name}", save_as_external_data=True, location=data.name)
        Path(folder, data.name).replace(data)
        Path(folder, path.name).replace(path)


def _weight_name(path: tuple) -> str:
    return "/".join(str(key.key) for key in path[1:])


def _value_info(name: str, shape: Sequence[Any], dtype: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [_fixed(size, str(size)) for size in shape])


class _Writer:
    """Turns the equations of a trace into nodes of a graph, one after another."""

    def __init__(self, network: str):
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._names: collections.Counter[str] = collections.Counter()
        self._path = ""

    def run(self, jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[_Value]) -> list[_Value]:
        """Returns the results of a program."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= {v: _Constant(np.asarray(value)) for v, value in zip(jaxpr.constvars, constants, strict=True)}

        def read(variable: Any) -> _Value:
            return _Constant(np.asarray(variable.val)) if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            outer = self._path
            self._path = f"{outer}/{module_path(equation, self.network)}".strip("/")
            results = self._apply(equation, [read(variable) for variable in equation.invars])
            self._path = outer
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _apply(self, equation: JaxprEqn, arguments: list[_Value]) -> list[_Value]:
        operation, fields = equation.primitive.name, equation.params
        inner = fields.get("jaxpr", fields.get("call_jaxpr"))
        if isinstance(inner, ClosedJaxpr):
            return self.run(inner.jaxpr, inner.consts, arguments)
        if isinstance(inner, Jaxpr):
            return self.run(inner, [], arguments)
        if operation in _UNCHANGED:
            return arguments
        constants = [argument for argument in arguments if isinstance(argument, _Constant)]
        if len(constants) == len(arguments) and operation not in _OF_CONSTANTS:
            return self._evaluate(equation, constants)
        if operation in _ELEMENTWISE:
            return [self._elementwise(operation, arguments)]
        write = getattr(self, f"_{operation}", None)
        if write is None:
            raise UserError(f"{self.network} computes {operation}, which this writer of ONNX does not know")
        return [write(equation, *arguments)]

    def _evaluate(self, equation: JaxprEqn, arguments: list[_Constant]) -> list[_Value]:
        results = equation.primitive.bind(*(_single(argument.value) for argument in arguments), **equation.params)
        name = next((argument.name for argument in arguments if argument.name), "")
        results = results if equation.primitive.multiple_results else [results]
        return [_Constant(np.asarray(result), name) for result in results]

    # Nodes, and values brought into the form that a node takes.

    def emit(
        self, operator: str, inputs: Sequence[_Value], order: _Order, shape: _Shape, **attributes: Any
    ) -> _Tensor:
        """Adds a node; its inputs are taken as they lie in the graph."""
        names = [self._weight(each) if isinstance(each, _Constant) else each.name for each in inputs]
        name = self._unique(f"{self._path}/{operator}".strip("/"))
        self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return _Tensor(name, tuple(order), tuple(shape))

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"

    def _weight(self, constant: _Constant) -> str:
        name = self._unique(constant.name or f"{self._path}/constant".strip("/"))
        self.weights[name] = np.array(_single(constant.value), order="C")
        return name

    @overload
    def plain(self, x: _Tensor) -> _Tensor: ...

    @overload
    def plain(self, x: _Value) -> _Value: ...

    def plain(self, x: _Value) -> _Value:
        """Returns a value whose axes lie in the graph as in the trace."""
        return self._ordered(x, range(len(_shape(x))))

    @overload
    def _ordered(self, x: _Tensor, order: _Order) -> _Tensor: ...

    @overload
    def _ordered(self, x: _Value, order: _Order) -> _Value: ...

    def _ordered(self, x: _Value, order: _Order) -> _Value:
        if isinstance(x, _Constant):
            return _laid(x, tuple(order))
        if x.flattened is not None:
            source = self.plain(x.flattened)
            x = self.emit("Flatten", [source], (0, 1), x.shape, axis=1)
        x = self._scaled(x)
        if None in x.order:
            extra = [axis for axis, place in enumerate(x.order) if place is None]
            x = self.emit(
                "Squeeze", [x, _integers(extra)], [place for place in x.order if place is not None], x.shape
            )
        if x.order == tuple(order):
            return x
        return self.emit("Transpose", [x], order, x.shape, perm=[x.order.index(place) for place in order])

    def _scaled(self, x: _Tensor) -> _Tensor:
        if x.factor == 1:
            return x
        return self.emit("Mul", [x, _number(x.factor)], x.order, x.shape)

    @overload
    def expanded(self, x: _Tensor, shape: _Shape) -> _Tensor: ...

    @overload
    def expanded(self, x: _Value, shape: _Shape) -> _Value: ...

    def expanded(self, x: _Value, shape: _Shape) -> _Value:
        """Returns a value that has a shape itself, where so far only those that use it would broadcast it."""
        if isinstance(x, _Constant):
            return _Constant(np.broadcast_to(x.value, shape), x.name)
        if x.shape == tuple(shape):
            return x
        x = self._scaled(self.plain(x))
        return self.emit("Expand", [x, _integers([_fixed(size, 1) for size in shape])], x.order, shape)

    # The operations, by JAX's names.

    def _elementwise(self, operation: str, arguments: list[_Value]) -> _Value:
        first, *others = arguments
        if operation in ("mul", "div") and isinstance(first, _Tensor) and isinstance(others[0], _Constant):
            factor = np.unique(others[0].value.astype(np.float64))
            if factor.size == 1 and (first.factor != 1 or factor[0] == 1):
                factor = first.factor * (factor[0] if operation == "mul" else 1 / factor[0])
                return dataclasses.replace(first, factor=1.0 if abs(factor - 1) < 1e-6 else factor)
        rank = max(len(_shape(each)) for each in arguments)
        tensors = [each for each in arguments if isinstance(each, _Tensor)]
        orders: set[tuple[int | None, ...]] = {each.order for each in tensors if each.flattened is None}
        order = max(orders, key=lambda order: order != tuple(range(rank)), default=tuple(range(rank)))
        if len(orders) > 1 and any(None in each for each in orders):
            order = tuple(range(rank))
        inputs: list[_Value] = []
        for each in arguments:
            if isinstance(each, _Constant):
                is_number = each.value.size == 1
                inputs.append(_Constant(each.value.reshape(()), each.name) if is_number else _laid(each, order))
            else:
                is_laid = each.order == order and each.flattened is None
                inputs.append(self._scaled(each) if is_laid else self._ordered(each, order))
        shapes = [shape for shape in map(_shape, arguments) if len(shape) == rank]
        shape = [next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True)]

        def emit(operator: str, *inputs: _Value) -> _Tensor:
            return self.emit(operator, inputs, order, shape)

        if operation == "max" and any(isinstance(each, _Constant) and not each.value.any() for each in inputs):
            return emit("Relu", *(each for each in inputs if isinstance(each, _Tensor)))
        write = _ELEMENTWISE[operation]
        return emit(write, *inputs) if isinstance(write, str) else write(emit, *inputs)

    def _integer_pow(self, equation: JaxprEqn, x: _Value) -> _Value:
        return self._elementwise("pow", [x, _number(equation.params["y"])])

    def _convert_element_type(self, equation: JaxprEqn, x: _Value) -> _Value:
        before, after = _type(equation.invars[0]).dtype, equation.params["new_dtype"]
        if _dtype(before) == _dtype(after):
            return x
        if isinstance(x, _Constant):
            return _Constant(x.value.astype(after), x.name)
        return self.emit("Cast", [x], x.order, x.shape, to=_dtype(after))

    def _broadcast_in_dim(self, equation: JaxprEqn, x: _Value) -> _Value:
        shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
        kept = [1] * len(shape)
        for place, size in zip(places, _shape(x), strict=True):
            kept[place] = size
        if isinstance(x, _Constant):
            is_known = all(isinstance(size, int) for size in shape)
            value = x.value.reshape(kept)
            return _Constant(np.broadcast_to(value, shape) if is_known else value, x.name)
        return self._with_axes(x, dict(enumerate(places)), kept)

    def _with_axes(self, x: _Tensor, places: dict[int, int], shape: _Shape) -> _Tensor:
        """Returns a tensor with other axes of size 1; the others, at each key, come to their places, in order."""
        x = self.plain(x) if x.flattened is not None else x
        new = [place for place in range(len(shape)) if place not in places.values()]
        order = [None if place is None else places.get(place) for place in x.order]
        if order.count(None) < len(new):
            return self.emit("Reshape", [self.plain(x), _integers(_sizes(shape))], range(len(shape)), shape)
        for axis, place in enumerate(order):
            if place is None and new:
                order[axis] = new.pop(0)
        return dataclasses.replace(x, order=tuple(order), shape=tuple(shape))

    def _reshape(self, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        shape = _type(equation.outvars[0]).shape
        x = self.expanded(x, _type(equation.invars[0]).shape)
        old, new = ([place for place, size in enumerate(sizes) if size != 1] for sizes in (x.shape, shape))
        if [x.shape[place] for place in old] == [shape[place] for place in new]:
            return self._with_axes(x, dict(zip(old, new, strict=True)), shape)
        if x.order == _NCHW and len(shape) == 2 and shape[0] == x.shape[0]:
            return _Tensor("", (0, 1), shape, flattened=self._scaled(x))
        return self.emit("Reshape", [self.plain(x), _integers(_sizes(shape))], range(len(shape)), shape)

    def _squeeze(self, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        return self._reshape(equation, x)

    def _transpose(self, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        permutation = equation.params["permutation"]
        x = self.plain(x) if x.flattened is not None else x
        order = tuple(None if place is None else permutation.index(place) for place in x.order)
        return dataclasses.replace(x, order=order, shape=tuple(x.shape[place] for place in permutation))

    def _conv_general_dilated(self, equation: JaxprEqn, x: _Value, kernel: _Value) -> _Tensor:
        fields, numbers = equation.params, equation.params["dimension_numbers"]
        if not isinstance(kernel, _Constant) or max(fields["lhs_dilation"]) > 1 or fields["batch_group_count"] > 1:
            raise UserError(f"{self.network} has a transposed convolution, or one by a computed kernel")
        return self.emit(
            "Conv",
            [self._ordered(x, numbers.lhs_spec), _laid(kernel, numbers.rhs_spec)],
            numbers.out_spec,
            _type(equation.outvars[0]).shape,
            strides=fields["window_strides"],
            pads=[side for sides in zip(*fields["padding"], strict=True) for side in sides],
            dilations=fields["rhs_dilation"],
            group=fields["feature_group_count"],
        )

    def _reduce_window_max(self, equation: JaxprEqn, x: _Value) -> _Tensor:
        return self._pooled("MaxPool", equation, x)

    def _reduce_window_sum(self, equation: JaxprEqn, x: _Value) -> _Tensor:
        mean = self._pooled("AveragePool", equation, x, count_include_pad=1)
        return dataclasses.replace(mean, factor=float(math.prod(equation.params["window_dimensions"])))

    def _pooled(self, operator: str, equation: JaxprEqn, x: _Value, **attributes: Any) -> _Tensor:
        window, strides, padding = (
            equation.params[name] for name in ("window_dimensions", "window_strides", "padding")
        )
        whole = [axis for axis, size in enumerate(window) if size == strides[axis] == 1 and padding[axis] == (0, 0)]
        # ONNX pools all axes but the first two.
        order = [whole[0], whole[-1], *(axis for axis in range(len(window)) if axis not in (whole[0], whole[-1]))]
        return self.emit(
            operator,
            [self._ordered(x, order)],
            order,
            _type(equation.outvars[0]).shape,
            kernel_shape=[window[axis] for axis in order[2:]],
            strides=[strides[axis] for axis in order[2:]],
            pads=[padding[axis][side] for side in (0, 1) for axis in order[2:]],
            **attributes,
        )

    def _reduce_sum(self, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        axes, shape = equation.params["axes"], _type(equation.invars[0]).shape
        if (
            x.order == _NCHW
            and axes == (1, 2)
            and x.shape == shape
            and all(isinstance(shape[axis], int) for axis in axes)
        ):
            x = self._scaled(x)
            mean = self.emit("GlobalAveragePool", [x], (0, 1, None, None), (shape[0], shape[3]))
            return dataclasses.replace(mean, factor=float(shape[1] * shape[2]))
        return self._reduced("ReduceSum", equation, x)

    def _reduce_max(self, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        return self._reduced("ReduceMax", equation, x)

    def _reduced(self, operator: str, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        x = self.plain(self.expanded(x, _type(equation.invars[0]).shape))
        shape = _type(equation.outvars[0]).shape
        return self.emit(operator, [x, _integers(equation.params["axes"])], range(len(shape)), shape, keepdims=0)

    def _dot_general(self, equation: JaxprEqn, x: _Value, y: _Value) -> _Tensor:
        (contracted, batched), shape = equation.params["dimension_numbers"], _type(equation.outvars[0]).shape
        x, y = (self.expanded(each, _type(v).shape) for each, v in zip((x, y), equation.invars, strict=True))
        if contracted == ((1,), (0,)) and len(_shape(x)) == len(_shape(y)) == 2 and isinstance(y, _Constant):
            if isinstance(x, _Tensor) and x.flattened is not None:
                # The rows of the matrix follow the order in which the graph flattens.
                height, width, channels = x.flattened.shape[1:]
                y = _Constant(
                    y.value.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(y.value.shape),
                    y.name,
                )
                x = self.emit("Flatten", [x.flattened], (0, 1), x.shape, axis=1)
            return self.emit("Gemm", [self.plain(x), y], (0, 1), shape)
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        left = [next(letters) for _ in _shape(x)]
        right = [next(letters) for _ in _shape(y)]
        for pairs in (contracted, batched):
            for axis, other in zip(*pairs, strict=True):
                right[other] = left[axis]
        result = [left[axis] for axis in batched[0]]
        result += [letter for axis, letter in enumerate(left) if axis not in (*contracted[0], *batched[0])]
        result += [letter for axis, letter in enumerate(right) if axis not in (*contracted[1], *batched[1])]
        rule = f"{''.join(left)},{''.join(right)}->{''.join(result)}"
        return self.emit("Einsum", [self.plain(x), self.plain(y)], range(len(shape)), shape, equation=rule)

    def _concatenate(self, equation: JaxprEqn, *arrays: _Value) -> _Tensor:
        shape, axis = _type(equation.outvars[0]).shape, equation.params["dimension"]
        whole = [self.expanded(x, _type(v).shape) for x, v in zip(arrays, equation.invars, strict=True)]
        orders = [x.order for x in whole if isinstance(x, _Tensor) and None not in x.order and x.flattened is None]
        order = next(iter(orders), tuple(range(len(shape))))
        inputs = [self._ordered(x, order) for x in whole]
        return self.emit("Concat", inputs, order, shape, axis=order.index(axis))

    def _pad(self, equation: JaxprEqn, x: _Tensor, value: _Value) -> _Tensor:
        shape, sides = _type(equation.outvars[0]).shape, equation.params["padding_config"]
        if any(low < 0 or high < 0 or between for low, high, between in sides):
            raise UserError(f"{self.network} pads between values or by negative amounts, which ONNX cannot")
        x = self._in_some_order(self.expanded(x, _type(equation.invars[0]).shape))
        pads = [sides[place][side] for side in (0, 1) for place in x.order]
        return self.emit("Pad", [x, _integers(pads), value], x.order, shape)

    def _stack(self, equation: JaxprEqn, *arrays: _Value) -> _Tensor:
        axis, shape = equation.params["axis"], _type(equation.outvars[0]).shape
        places = [place for place in range(len(shape)) if place != axis]
        whole = [self.expanded(x, _type(v).shape) for x, v in zip(arrays, equation.invars, strict=True)]
        shape_of_part = [*shape[:axis], 1, *shape[axis + 1 :]]
        parts = [
            self._with_axes(x, dict(enumerate(places)), shape_of_part)
            if isinstance(x, _Tensor)
            else _Constant(np.expand_dims(x.value, axis), x.name)
            for x in whole
        ]
        return self.emit("Concat", [self.plain(part) for part in parts], range(len(shape)), shape, axis=axis)

    def _slice(self, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        fields = equation.params
        strides = fields["strides"] or (1,) * len(fields["start_indices"])
        parts = zip(fields["start_indices"], fields["limit_indices"], strides, strict=True)
        return self._cut(x, {axis: slice(*part) for axis, part in enumerate(parts)})

    def _rev(self, equation: JaxprEqn, x: _Tensor) -> _Tensor:
        return self._cut(x, dict.fromkeys(equation.params["dimensions"], slice(-1, -_LARGE, -1)))

    def _gather(self, equation: JaxprEqn, x: _Tensor, indices: _Value) -> _Tensor:
        """Writes what indexing by numbers, slices and lists of one axis each comes to."""
        numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
        axes, shape = numbers.start_index_map, _type(equation.outvars[0]).shape
        kept = [axis for axis in range(len(sizes)) if axis not in numbers.collapsed_slice_dims]
        if isinstance(indices, _Constant) and indices.value.shape == (len(axes),):
            starts = dict(zip(axes, map(int, indices.value), strict=True))
            x = self._cut(x, {axis: slice(start, start + sizes[axis], 1) for axis, start in starts.items()})
            x = dataclasses.replace(x, shape=tuple(sizes))
            return self._with_axes(x, {axis: place for place, axis in enumerate(kept)}, shape)
        if isinstance(indices, _Constant) and (numbers.collapsed_slice_dims, numbers.offset_dims) == (
            axes,
            tuple(kept),
        ):
            columns = [np.moveaxis(indices.value[..., axis], axis, -1) for axis in range(len(axes))]
            lists = [column.reshape(-1, column.shape[-1])[0] for column in columns]
            if np.array_equal(indices.value, np.stack(np.meshgrid(*lists, indexing="ij"), -1)):
                for axis, chosen in zip(axes, lists, strict=True):
                    x = self._taken(x, axis, chosen)
                return x
        raise UserError(f"{self.network} picks values in a way that this writer of ONNX does not know")

    def _taken(self, x: _Tensor, axis: int, chosen: np.ndarray) -> _Tensor:
        """Returns the values at given places along an axis."""
        steps = np.unique(np.diff(chosen))
        if steps.size == 1 and steps[0] > 0:
            return self._cut(x, {axis: slice(int(chosen[0]), int(chosen[-1]) + 1, int(steps[0]))})
        x = self._in_some_order(x)
        shape = [chosen.size if each == axis else size for each, size in enumerate(x.shape)]
        return self.emit("Gather", [x, _integers(chosen)], x.order, shape, axis=x.order.index(axis))

    def _cut(self, x: _Tensor, slices: dict[int, slice]) -> _Tensor:
        """Returns a slice along each of some axes."""
        whole = {axis: slice(0, size, 1) for axis, size in enumerate(_shape(x))}
        slices = {axis: part for axis, part in slices.items() if part != whole[axis]}
        x = self._in_some_order(x)
        if not slices:
            return x
        shape = list(x.shape)
        for axis, part in slices.items():
            shape[axis] = shape[axis] if part.step < 0 else -(-(part.stop - part.start) // part.step)
        starts, stops, steps = (
            [getattr(part, end) for part in slices.values()] for end in ("start", "stop", "step")
        )
        axes = [x.order.index(axis) for axis in slices]
        return self.emit("Slice", [x, *map(_integers, (starts, stops, axes, steps))], x.order, shape)

    def _in_some_order(self, x: _Tensor) -> _Tensor:
        """Returns a tensor whose axes are those of the array, in any order, without a factor."""
        return self.plain(x) if None in x.order or x.flattened is not None else self._scaled(x)


# Operations that change no value, or nothing that float32 has.
_UNCHANGED = frozenset(
    (
        "copy",
        "copy_p",
        "mesh_cast",
        "name",
        "optimization_barrier",
        "pvary",
        "reduce_precision",
        "reshard",
        "sharding_constraint",
        "stop_gradient",
    )
)
# Those which, of constants too, may have an open size.
_OF_CONSTANTS = frozenset(("broadcast_in_dim", "convert_element_type"))
# ONNX's operators, or what they are composed of: `compose(emit, *inputs)`.
_ELEMENTWISE: dict[str, str | Callable[..., _Tensor]] = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "erfc": lambda emit, x: emit("Sub", _ONE, emit("Erf", x)),
    "exp": "Exp",
    "expm1": lambda emit, x: emit("Sub", emit("Exp", x), _ONE),
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "is_finite": lambda emit, x: emit("Less", emit("Abs", x), _number(np.inf)),
    "le": "LessOrEqual",
    "log": "Log",
    "log1p": lambda emit, x: emit("Log", emit("Add", _ONE, x)),
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "ne": lambda emit, x, y: emit("Not", emit("Equal", x, y)),
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "rsqrt": lambda emit, x: emit("Reciprocal", emit("Sqrt", x)),
    "select_n": lambda emit, which, x, y: emit("Where", which, y, x),
    "sign": "Sign",
    "sqrt": "Sqrt",
    "square": lambda emit, x: emit("Mul", x, x),
    "sub": "Sub",
    "tanh": "Tanh",
}
_ONE = _Constant(np.array(1, np.float32))
_NCHW = (0, 3, 1, 2)
_LARGE = 2**62


def _shape(x: _Value) -> _Shape:
    return x.value.shape if isinstance(x, _Constant) else x.shape


def _fixed(size: Any, otherwise: Any) -> Any:
    return size if isinstance(size, int) else otherwise


def _sizes(shape: _Shape) -> list[int]:
    return [_fixed(size, -1) for size in shape]


def _number(value: float) -> _Constant:
    return _Constant(np.array(value, np.float32))


def _type(variable: Any) -> Any:
    """Returns the type of an array of the trace."""
    return variable.aval


def _integers(values: Any) -> _Constant:
    return _Constant(np.array(values, np.int64))


def _single(value: np.ndarray) -> np.ndarray:
    """Returns a floating array in float32, in which the graph computes."""
    return value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _dtype(dtype: Any) -> int:
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    return TensorProto.FLOAT if is_floating else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _laid(constant: _Constant, order: _Order) -> _Constant:
    """Returns a constant as it lies beside tensors of an order."""
    value = constant.value.transpose([place for place in order if place is not None])
    return _Constant(
        np.expand_dims(value, [axis for axis, place in enumerate(order) if place is None]), constant.name
    )


def _with_biases(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """Returns the nodes, with biases made part of the convolutions and products to which they are added."""
    uses = collections.Counter(name for node in nodes for name in node.input)
    makers = {node.output[0]: node for node in nodes}
    kept = []
    for node in nodes:
        if node.op_type == "Add":
            maker, bias = makers.get(node.input[0]), node.input[1]
            axis = {"Conv": 0, "Gemm": 1}.get(maker.op_type) if maker else None
            if (
                maker
                and axis is not None
                and len(maker.input) == 2
                and uses[maker.output[0]] == 1
                and bias in weights
            ):
                features = weights[maker.input[1]].shape[axis]
                along = (1, features, *(1,) * (weights[maker.input[1]].ndim - 2))
                if weights[bias].shape == along or features == weights[bias].size == 1:
                    weights[bias] = weights[bias].reshape(features)
                    maker.input.append(bias)
                    makers[node.output[0]] = maker
                    maker.output[0] = node.output[0]
                    continue
        kept.append(node)
    return kept


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
