"""Conversion of elementwise operations: arithmetic, activations, comparisons, casts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from flaxcnn.inference.onnx.graph import Graph
from flaxcnn.inference.onnx.values import Constant, Tensor, Value, constant_in_order, number, onnx_dtype, shape_of

_ONE = number(1)
# For each operation of JAX, the ONNX operator, or a function `compose(emit, *inputs)` that emits several operators.
_OPERATORS: dict[str, str | Callable[..., Tensor]] = {
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
    "is_finite": lambda emit, x: emit("Less", emit("Abs", x), number(np.inf)),
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


def _elementwise(graph: Graph, equation: JaxprEqn, *arguments: Value) -> Value:
    return _apply(graph, equation.primitive.name, *arguments)


def _apply(graph: Graph, operation: str, *arguments: Value) -> Value:
    first, *others = arguments
    if operation in ("mul", "div") and isinstance(first, Tensor) and isinstance(others[0], Constant):
        # ONNX has mean pooling where JAX divides a sum: the factor of the sum cancels the division without a node.
        factor = np.unique(others[0].value.astype(np.float64))
        if factor.size == 1 and (first.factor != 1 or factor[0] == 1):
            factor = first.factor * (factor[0] if operation == "mul" else 1 / factor[0])
            return dataclasses.replace(first, factor=1.0 if abs(factor - 1) < 1e-6 else factor)
    rank = max(len(shape_of(each)) for each in arguments)
    order = _common_order(arguments, rank)
    inputs: list[Value] = []
    for each in arguments:
        if isinstance(each, Tensor):
            is_in_order = each.order == order and each.flattened is None
            inputs.append(graph.scaled(each) if is_in_order else graph.in_order(each, order))
        elif each.value.size == 1:
            inputs.append(Constant(each.value.reshape(()), each.name))
        else:
            inputs.append(constant_in_order(each, order))
    shapes = [shape for shape in map(shape_of, arguments) if len(shape) == rank]
    shape = [next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True)]

    def emit(operator: str, *inputs: Value) -> Tensor:
        return graph.emit(operator, inputs, order, shape)

    if operation == "max" and any(isinstance(each, Constant) and not each.value.any() for each in inputs):
        return emit("Relu", *(each for each in inputs if isinstance(each, Tensor)))
    operator = _OPERATORS[operation]
    return emit(operator, *inputs) if isinstance(operator, str) else operator(emit, *inputs)


def _common_order(arguments: Sequence[Value], rank: int) -> tuple[int | None, ...]:
    """Returns an order of axes for all operands: if possible, one that a tensor already has."""
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    orders: set[tuple[int | None, ...]] = {each.order for each in tensors if each.flattened is None}
    plain = tuple(range(rank))
    if len(orders) > 1 and any(None in each for each in orders):
        return plain
    return max(orders, key=lambda order: order != plain, default=plain)


def _integer_pow(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    return _apply(graph, "pow", x, number(equation.params["y"]))


def _convert_element_type(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    operand: Any = equation.invars[0]
    before, after = operand.aval.dtype, equation.params["new_dtype"]
    if onnx_dtype(before) == onnx_dtype(after):
        return x
    if isinstance(x, Constant):
        return Constant(x.value.astype(after), x.name)
    return graph.emit("Cast", [x], x.order, x.shape, to=onnx_dtype(after))


CONVERSIONS: dict[str, Callable[..., Value]] = {
    **dict.fromkeys(_OPERATORS, _elementwise),
    "convert_element_type": _convert_element_type,
    "integer_pow": _integer_pow,
}
"""For each operation of JAX, by name, the function `convert(graph, equation, *operands)` that converts it."""
