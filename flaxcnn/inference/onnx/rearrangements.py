"""Conversion of operations that move values without computing: reshape, transpose, slice, pad, gather, ..."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jax.extend.core import JaxprEqn

from flaxcnn.errors import UserError
from flaxcnn.inference.onnx.graph import Graph
from flaxcnn.inference.onnx.values import (
    NCHW,
    Constant,
    Shape,
    Tensor,
    Value,
    integers,
    known_or,
    operand_shape,
    result_shape,
    shape_of,
)

# End of a slice with a negative step that includes the first element, for any size.
_BEYOND = 2**62


def _broadcast_in_dim(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    kept = [1] * len(shape)
    for place, size in zip(places, shape_of(x), strict=True):
        kept[place] = size
    if isinstance(x, Constant):
        is_known = all(isinstance(size, int) for size in shape)
        value = x.value.reshape(kept)
        return Constant(np.broadcast_to(value, shape) if is_known else value, x.name)
    return _with_axes(graph, x, dict(enumerate(places)), kept)


def _with_axes(graph: Graph, x: Tensor, places: dict[int, int], shape: Shape) -> Tensor:
    """Returns a tensor with axes moved, and with axes of size 1 added or removed.

    Args:
      graph: the graph.
      x: the tensor.
      places: maps each axis of `x` that is kept to its axis in the result, in increasing order.
      shape: shape of the result, with size 1 for all other axes.
    """
    x = graph.plain(x) if x.flattened is not None else x
    new = [place for place in range(len(shape)) if place not in places.values()]
    order = [None if place is None else places.get(place) for place in x.order]
    if order.count(None) < len(new):
        return graph.emit("Reshape", [graph.plain(x), _sizes(shape)], range(len(shape)), shape)
    for axis, place in enumerate(order):
        if place is None and new:
            order[axis] = new.pop(0)
    return dataclasses.replace(x, order=tuple(order), shape=tuple(shape))


def _sizes(shape: Shape) -> Constant:
    """Returns a shape as an operand of `Reshape`, with -1 for the number of images."""
    return integers([known_or(size, -1) for size in shape])


def _reshape(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    shape = result_shape(equation)
    x = graph.expanded(x, operand_shape(equation))
    old, new = ([place for place, size in enumerate(sizes) if size != 1] for sizes in (x.shape, shape))
    if [x.shape[place] for place in old] == [shape[place] for place in new]:
        return _with_axes(graph, x, dict(zip(old, new, strict=True)), shape)
    if x.order == NCHW and len(shape) == 2 and shape[0] == x.shape[0]:
        return Tensor("", (0, 1), tuple(shape), flattened=graph.scaled(x))
    return graph.emit("Reshape", [graph.plain(x), _sizes(shape)], range(len(shape)), shape)


def _transpose(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    permutation = equation.params["permutation"]
    x = graph.plain(x) if x.flattened is not None else x
    order = tuple(None if place is None else permutation.index(place) for place in x.order)
    return dataclasses.replace(x, order=order, shape=tuple(x.shape[place] for place in permutation))


def _concatenate(graph: Graph, equation: JaxprEqn, *arrays: Value) -> Tensor:
    shape, axis = result_shape(equation), equation.params["dimension"]
    whole = [graph.expanded(x, operand_shape(equation, index)) for index, x in enumerate(arrays)]
    orders = [x.order for x in whole if isinstance(x, Tensor) and None not in x.order and x.flattened is None]
    order = next(iter(orders), tuple(range(len(shape))))
    inputs = [graph.in_order(x, order) for x in whole]
    return graph.emit("Concat", inputs, order, shape, axis=order.index(axis))


def _stack(graph: Graph, equation: JaxprEqn, *arrays: Value) -> Tensor:
    axis, shape = equation.params["axis"], result_shape(equation)
    places = [place for place in range(len(shape)) if place != axis]
    whole = [graph.expanded(x, operand_shape(equation, index)) for index, x in enumerate(arrays)]
    shape_of_part = [*shape[:axis], 1, *shape[axis + 1 :]]
    parts = [
        _with_axes(graph, x, dict(enumerate(places)), shape_of_part)
        if isinstance(x, Tensor)
        else Constant(np.expand_dims(x.value, axis), x.name)
        for x in whole
    ]
    return graph.emit("Concat", [graph.plain(part) for part in parts], range(len(shape)), shape, axis=axis)


def _pad(graph: Graph, equation: JaxprEqn, x: Tensor, value: Value) -> Tensor:
    shape, sides = result_shape(equation), equation.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in sides):
        raise UserError(f"{graph.network} pads between values or by negative amounts, which ONNX cannot")
    x = graph.in_any_order(graph.expanded(x, operand_shape(equation)))
    pads = [sides[place][side] for side in (0, 1) for place in x.order]
    return graph.emit("Pad", [x, integers(pads), value], x.order, shape)


def _slice(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    fields = equation.params
    strides = fields["strides"] or (1,) * len(fields["start_indices"])
    slices = zip(fields["start_indices"], fields["limit_indices"], strides, strict=True)
    return _cut(graph, x, {axis: slice(*ends) for axis, ends in enumerate(slices)})


def _reverse(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    return _cut(graph, x, dict.fromkeys(equation.params["dimensions"], slice(-1, -_BEYOND, -1)))


def _gather(graph: Graph, equation: JaxprEqn, x: Tensor, indices: Value) -> Tensor:
    """Converts indexing by numbers, by slices, and by one list of indices per axis."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes, shape = numbers.start_index_map, result_shape(equation)
    kept = [axis for axis in range(len(sizes)) if axis not in numbers.collapsed_slice_dims]
    if isinstance(indices, Constant) and indices.value.shape == (len(axes),):
        starts = dict(zip(axes, map(int, indices.value), strict=True))
        x = _cut(graph, x, {axis: slice(start, start + sizes[axis], 1) for axis, start in starts.items()})
        x = dataclasses.replace(x, shape=tuple(sizes))
        return _with_axes(graph, x, {axis: place for place, axis in enumerate(kept)}, shape)
    if isinstance(indices, Constant) and (numbers.collapsed_slice_dims, numbers.offset_dims) == (axes, tuple(kept)):
        columns = [np.moveaxis(indices.value[..., axis], axis, -1) for axis in range(len(axes))]
        lists = [column.reshape(-1, column.shape[-1])[0] for column in columns]
        if np.array_equal(indices.value, np.stack(np.meshgrid(*lists, indexing="ij"), -1)):
            for axis, chosen in zip(axes, lists, strict=True):
                x = _taken(graph, x, axis, chosen)
            return x
    raise UserError(f"{graph.network} picks values in a way that cannot be written as ONNX")


def _taken(graph: Graph, x: Tensor, axis: int, chosen: np.ndarray) -> Tensor:
    """Returns the values at the indices `chosen` along an axis."""
    steps = np.unique(np.diff(chosen))
    if steps.size == 1 and steps[0] > 0:
        return _cut(graph, x, {axis: slice(int(chosen[0]), int(chosen[-1]) + 1, int(steps[0]))})
    x = graph.in_any_order(x)
    shape = [chosen.size if each == axis else size for each, size in enumerate(x.shape)]
    return graph.emit("Gather", [x, integers(chosen)], x.order, shape, axis=x.order.index(axis))


def _cut(graph: Graph, x: Tensor, slices: dict[int, slice]) -> Tensor:
    """Slices a tensor along the given axes."""
    whole = {axis: slice(0, size, 1) for axis, size in enumerate(shape_of(x))}
    slices = {axis: part for axis, part in slices.items() if part != whole[axis]}
    x = graph.in_any_order(x)
    if not slices:
        return x
    shape = list(x.shape)
    for axis, part in slices.items():
        shape[axis] = shape[axis] if part.step < 0 else -(-(part.stop - part.start) // part.step)
    starts, stops, steps = ([getattr(part, end) for part in slices.values()] for end in ("start", "stop", "step"))
    axes = [x.order.index(axis) for axis in slices]
    return graph.emit("Slice", [x, *map(integers, (starts, stops, axes, steps))], x.order, shape)


CONVERSIONS: dict[str, Callable[..., Value]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}
"""For each operation of JAX, by name, the function `convert(graph, equation, *operands)` that converts it."""
