"""The ONNX graph under construction: its nodes and weights, and conversions of its values between layouts."""

import collections
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import onnx
from onnx import helper

from flaxcnn.inference.onnx.values import (
    Constant,
    Order,
    Shape,
    Tensor,
    Value,
    as_float32,
    constant_in_order,
    integers,
    known_or,
    number,
    shape_of,
)


class Graph:
    """An ONNX graph under construction.

    Attributes:
      network: class name of the network, for error messages.
      nodes: nodes, in the order in which they were added.
      weights: constants that nodes use, by name.
      path: path of the module that is being converted, such as `stage1_block1/conv1`; names of new nodes start with
        it.
    """

    def __init__(self, network: str):
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.path = ""
        self._names: collections.Counter[str] = collections.Counter()

    def emit(self, operator: str, inputs: Sequence[Value], order: Order, shape: Shape, **attributes: Any) -> Tensor:
        """Adds a node and returns its output.

        Args:
          operator: name of the ONNX operator.
          inputs: inputs of the node. Their values in the graph are used without changing layout or factor.
          order: order of the output's axes, see `Tensor`.
          shape: shape of the array that the output represents, see `Tensor`.
          **attributes: attributes of the node.
        """
        names = [self._add_weight(each) if isinstance(each, Constant) else each.name for each in inputs]
        name = self._unique(f"{self.path}/{operator}".strip("/"))
        self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return Tensor(name, tuple(order), tuple(shape))

    def _add_weight(self, constant: Constant) -> str:
        name = self._unique(constant.name or f"{self.path}/constant".strip("/"))
        self.weights[name] = np.array(as_float32(constant.value), order="C")
        return name

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"

    @overload
    def plain(self, x: Tensor) -> Tensor: ...

    @overload
    def plain(self, x: Value) -> Value: ...

    def plain(self, x: Value) -> Value:
        """Returns the value with its axes in the order of the array that it represents, and with factor 1."""
        return self.in_order(x, range(len(shape_of(x))))

    @overload
    def in_order(self, x: Tensor, order: Order) -> Tensor: ...

    @overload
    def in_order(self, x: Value, order: Order) -> Value: ...

    def in_order(self, x: Value, order: Order) -> Value:
        """Returns the value with its axes in a given order, and with factor 1.

        Nodes that flatten, multiply, squeeze or transpose the value are added where they are needed.
        """
        if isinstance(x, Constant):
            return constant_in_order(x, tuple(order))
        if x.flattened is not None:
            source = self.plain(x.flattened)
            x = self.emit("Flatten", [source], (0, 1), x.shape, axis=1)
        x = self.scaled(x)
        if None in x.order:
            extra = [axis for axis, place in enumerate(x.order) if place is None]
            x = self.emit(
                "Squeeze", [x, integers(extra)], [place for place in x.order if place is not None], x.shape
            )
        if x.order == tuple(order):
            return x
        return self.emit("Transpose", [x], order, x.shape, perm=[x.order.index(place) for place in order])

    def in_any_order(self, x: Tensor) -> Tensor:
        """Returns a tensor with exactly the axes of the array that it represents.

        The axes may be in any order. The tensor has factor 1, and a flattening (see `Tensor`) has been applied.
        """
        return self.plain(x) if None in x.order or x.flattened is not None else self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        """Returns the tensor multiplied by its factor, so that its factor is 1."""
        if x.factor == 1:
            return x
        return self.emit("Mul", [x, number(x.factor)], x.order, x.shape)

    @overload
    def expanded(self, x: Tensor, shape: Shape) -> Tensor: ...

    @overload
    def expanded(self, x: Value, shape: Shape) -> Value: ...

    def expanded(self, x: Value, shape: Shape) -> Value:
        """Returns the value expanded to a shape, for operators that do not broadcast."""
        if isinstance(x, Constant):
            return Constant(np.broadcast_to(x.value, shape), x.name)
        if x.shape == tuple(shape):
            return x
        x = self.scaled(self.plain(x))
        return self.emit("Expand", [x, integers([known_or(size, 1) for size in shape])], x.order, shape)
