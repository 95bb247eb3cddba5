"""Conversion of convolutions, matrix products, pooling and reductions."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jax.extend.core import JaxprEqn

from flaxcnn.errors import UserError
from flaxcnn.inference.onnx.graph import Graph
from flaxcnn.inference.onnx.values import (
    NCHW,
    Constant,
    Tensor,
    Value,
    constant_in_order,
    integers,
    operand_shape,
    result_shape,
    shape_of,
)


def _convolution(graph: Graph, equation: JaxprEqn, x: Value, kernel: Value) -> Tensor:
    fields, numbers = equation.params, equation.params["dimension_numbers"]
    if not isinstance(kernel, Constant) or max(fields["lhs_dilation"]) > 1 or fields["batch_group_count"] > 1:
        raise UserError(f"{graph.network} has a transposed convolution, or one by a computed kernel")
    return graph.emit(
        "Conv",
        [graph.in_order(x, numbers.lhs_spec), constant_in_order(kernel, numbers.rhs_spec)],
        numbers.out_spec,
        result_shape(equation),
        strides=fields["window_strides"],
        pads=[side for sides in zip(*fields["padding"], strict=True) for side in sides],
        dilations=fields["rhs_dilation"],
        group=fields["feature_group_count"],
    )


def _matrix_product(graph: Graph, equation: JaxprEqn, x: Value, y: Value) -> Tensor:
    (contracted, batched), shape = equation.params["dimension_numbers"], result_shape(equation)
    x, y = (graph.expanded(each, operand_shape(equation, index)) for index, each in enumerate((x, y)))
    if contracted == ((1,), (0,)) and len(shape_of(x)) == len(shape_of(y)) == 2 and isinstance(y, Constant):
        if isinstance(x, Tensor) and x.flattened is not None:
            # The graph flattens (C, H, W), so the rows of the matrix are permuted from the order (H, W, C).
            height, width, channels = x.flattened.shape[1:]
            y = Constant(
                y.value.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(y.value.shape), y.name
            )
            x = graph.emit("Flatten", [x.flattened], (0, 1), x.shape, axis=1)
        return graph.emit("Gemm", [graph.plain(x), y], (0, 1), shape)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in shape_of(x)]
    right = [next(letters) for _ in shape_of(y)]
    for pairs in (contracted, batched):
        for axis, other in zip(*pairs, strict=True):
            right[other] = left[axis]
    result = [left[axis] for axis in batched[0]]
    result += [letter for axis, letter in enumerate(left) if axis not in (*contracted[0], *batched[0])]
    result += [letter for axis, letter in enumerate(right) if axis not in (*contracted[1], *batched[1])]
    rule = f"{''.join(left)},{''.join(right)}->{''.join(result)}"
    return graph.emit("Einsum", [graph.plain(x), graph.plain(y)], range(len(shape)), shape, equation=rule)


def _window_maximum(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    return _pooled(graph, "MaxPool", equation, x)


def _window_sum(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    # ONNX has only the mean over windows, so the result gets the window size as a factor. A following division by
    # the window size cancels it, see `_apply` in elementwise.py.
    mean = _pooled(graph, "AveragePool", equation, x, count_include_pad=1)
    return dataclasses.replace(mean, factor=float(math.prod(equation.params["window_dimensions"])))


def _pooled(graph: Graph, operator: str, equation: JaxprEqn, x: Value, **attributes: Any) -> Tensor:
    window, strides, padding = (
        equation.params[name] for name in ("window_dimensions", "window_strides", "padding")
    )
    whole = [axis for axis, size in enumerate(window) if size == strides[axis] == 1 and padding[axis] == (0, 0)]
    # ONNX pools over all axes but the first two.
    order = [whole[0], whole[-1], *(axis for axis in range(len(window)) if axis not in (whole[0], whole[-1]))]
    return graph.emit(
        operator,
        [graph.in_order(x, order)],
        order,
        result_shape(equation),
        kernel_shape=[window[axis] for axis in order[2:]],
        strides=[strides[axis] for axis in order[2:]],
        pads=[padding[axis][side] for side in (0, 1) for axis in order[2:]],
        **attributes,
    )


def _sum(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    axes, shape = equation.params["axes"], operand_shape(equation)
    if (
        x.order == NCHW
        and axes == (1, 2)
        and x.shape == shape
        and all(isinstance(shape[axis], int) for axis in axes)
    ):
        x = graph.scaled(x)
        mean = graph.emit("GlobalAveragePool", [x], (0, 1, None, None), (shape[0], shape[3]))
        return dataclasses.replace(mean, factor=float(shape[1] * shape[2]))
    return _reduced(graph, "ReduceSum", equation, x)


def _maximum(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    return _reduced(graph, "ReduceMax", equation, x)


def _reduced(graph: Graph, operator: str, equation: JaxprEqn, x: Tensor) -> Tensor:
    x = graph.plain(graph.expanded(x, operand_shape(equation)))
    shape = result_shape(equation)
    return graph.emit(operator, [x, integers(equation.params["axes"])], range(len(shape)), shape, keepdims=0)


CONVERSIONS: dict[str, Callable[..., Value]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _matrix_product,
    "reduce_max": _maximum,
    "reduce_sum": _sum,
    "reduce_window_max": _window_maximum,
    "reduce_window_sum": _window_sum,
}
"""For each operation of JAX, by name, the function `convert(graph, equation, *operands)` that converts it."""
