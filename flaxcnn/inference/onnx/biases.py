"""Merges additions of biases into the preceding convolutions and matrix products."""

import collections

import numpy as np
import onnx

# Operators that take a bias, with the axis of their weight that holds the output features.
_FEATURES = {"Conv": 0, "Gemm": 1}


def with_biases(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """Returns the nodes, with additions of a bias removed; the bias becomes the third input of the preceding node.

    It modifies nodes that get a bias, and reshapes the biases in `weights` to (features,).

    Args:
      nodes: nodes of a graph, in order.
      weights: constants of the graph, by name.
    """
    uses = collections.Counter(name for node in nodes for name in node.input)
    makers = {node.output[0]: node for node in nodes}
    kept = []
    for node in nodes:
        if node.op_type == "Add":
            maker, bias = makers.get(node.input[0]), node.input[1]
            axis = _FEATURES.get(maker.op_type) if maker else None
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
