"""Conversion of a function of images, such as a network, to an ONNX model, and writing the model to a file."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flaxcnn.atomic import write_whole
from flaxcnn.errors import UserError
from flaxcnn.inference.onnx.biases import with_biases
from flaxcnn.inference.onnx.conversion import convert
from flaxcnn.inference.onnx.graph import Graph
from flaxcnn.inference.onnx.values import Constant, Shape, Tensor, known_or, onnx_dtype
from flaxcnn.ops import stock_operations

OPSET = 18


def to_onnx(
    function: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: jax.ShapeDtypeStruct,
    *,
    network: str,
    probabilities: bool,
) -> onnx.ModelProto:
    """Returns an ONNX model of `function(variables, images)`, which computes in float32.

    The input of the model is named `images`, and the output `logits` or, with a softmax, `probabilities`.

    Args:
      function: function from variables and images to logits (N, classes).
      variables: tree of arrays, which become the weights of the model.
      images: shape (N, H, W, C) and dtype of the images, with a symbolic N.
      network: class name of the network, for error messages and as the name of the graph.
      probabilities: whether to append a softmax.

    Raises:
      UserError: an operation cannot be written as ONNX.
    """
    with stock_operations():
        program = jax.make_jaxpr(function)(variables, images)
    graph = Graph(network)
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    weights = [Constant(np.asarray(leaf), _weight_name(path)) for path, leaf in leaves]
    inputs = [*weights, Tensor("images", tuple(range(images.ndim)), images.shape)]
    (result,) = convert(graph, program.jaxpr, program.consts, inputs)
    if isinstance(result, Constant):
        raise UserError(f"{network} gives the same for all images")
    result = graph.plain(graph.expanded(result, program.out_avals[0].shape))
    if probabilities:
        result = graph.emit("Softmax", [result], result.order, result.shape, axis=1)
    output = "probabilities" if probabilities else "logits"
    return _model(graph, images, result, output)


def save(model: onnx.ModelProto, path: Path, weight_file: Path | None) -> None:
    """Writes a model to a file, which appears only when it is complete.

    Args:
      model: the model.
      path: file to write.
      weight_file: second file for the weights, in the same folder; None writes them to `path`.
    """
    if weight_file is None:
        write_whole(path, model.SerializeToString())
        return
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        onnx.save_model(model, f"{folder}/{path.name}", save_as_external_data=True, location=weight_file.name)
        Path(folder, weight_file.name).replace(weight_file)
        Path(folder, path.name).replace(path)


def _model(graph: Graph, images: jax.ShapeDtypeStruct, result: Tensor, output: str) -> onnx.ModelProto:
    """Returns the model of a finished graph, whose output `result` gets the name `output`."""
    nodes = with_biases(graph.nodes, graph.weights)
    _rename(nodes, result.name, output)
    used = {name for node in nodes for name in node.input}
    proto = helper.make_graph(
        nodes,
        graph.network,
        [_value_info("images", images.shape, onnx_dtype(images.dtype))],
        [_value_info(output, result.shape, TensorProto.FLOAT)],
        [numpy_helper.from_array(value, name) for name, value in graph.weights.items() if name in used],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        proto,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="flaxcnn",
    )


def _weight_name(path: tuple) -> str:
    return "/".join(str(key.key) for key in path[1:])


def _value_info(name: str, shape: Shape, dtype: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [known_or(size, str(size)) for size in shape])


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
