"""Values of an ONNX graph, each of which represents an array of the jaxpr that is converted."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from onnx import TensorProto, helper

Order = Sequence[int | None]
Shape = Sequence[Any]
NCHW = (0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A value that is known when the graph is written.

    Attributes:
      value: the array.
      name: name of the parameter that the array was computed from, or "".
    """

    value: np.ndarray
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value computed by the graph, which represents an array of the jaxpr.

    Attributes:
      name: name of the value in the graph.
      order: for each axis of the value, the corresponding axis of the array, or None for an additional axis of size
        1.
      shape: shape of the array, with 1 for axes that operations will broadcast.
      factor: factor by which the value must be multiplied to get the array.
      flattened: a tensor (N, C, H, W), or None. If it is given, the array is this tensor flattened in the order
        (N, H * W * C), and the graph has no node for it yet.
    """

    name: str
    order: tuple[int | None, ...]
    shape: tuple[Any, ...]
    factor: float = 1.0
    flattened: "Tensor | None" = None


Value = Constant | Tensor


def shape_of(x: Value) -> Shape:
    """Returns the shape of the array that a value represents."""
    return x.value.shape if isinstance(x, Constant) else x.shape


def constant_in_order(constant: Constant, order: Order) -> Constant:
    """Returns a constant with its axes permuted to an order; each None adds an axis of size 1."""
    value = constant.value.transpose([place for place in order if place is not None])
    return Constant(
        np.expand_dims(value, [axis for axis, place in enumerate(order) if place is None]), constant.name
    )


def number(value: float) -> Constant:
    """Returns a constant float32 scalar."""
    return Constant(np.array(value, np.float32))


def integers(values: Any) -> Constant:
    """Returns a constant int64 array, the dtype of shapes, axes and indices in ONNX."""
    return Constant(np.array(values, np.int64))


def as_float32(value: np.ndarray) -> np.ndarray:
    """Converts floating arrays to float32, in which the graph computes; returns other arrays unchanged."""
    return value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def onnx_dtype(dtype: Any) -> int:
    """Returns ONNX's number of a dtype; all floating dtypes become float32."""
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    return TensorProto.FLOAT if is_floating else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def known_or(size: Any, otherwise: Any) -> Any:
    """Returns `size` if it is an integer, and `otherwise` if it is symbolic, that is, the number of images."""
    return size if isinstance(size, int) else otherwise


def operand_shape(equation: JaxprEqn, index: int = 0) -> Shape:
    """Returns the shape of an operand of an equation."""
    variable: Any = equation.invars[index]
    return variable.aval.shape


def result_shape(equation: JaxprEqn) -> Shape:
    """Returns the shape of the only result of an equation."""
    variable: Any = equation.outvars[0]
    return variable.aval.shape
