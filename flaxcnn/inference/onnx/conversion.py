"""Conversion of a jaxpr, including the jaxprs nested in it, to nodes of an ONNX graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from flaxcnn.errors import UserError
from flaxcnn.inference.onnx import elementwise, rearrangements, reductions
from flaxcnn.inference.onnx.graph import Graph
from flaxcnn.inference.onnx.values import Constant, Value, as_float32
from flaxcnn.models.cost import module_path

_CONVERSIONS = elementwise.CONVERSIONS | reductions.CONVERSIONS | rearrangements.CONVERSIONS
# Operations that change no values, or only round them to less than float32.
_IDENTITIES = frozenset(
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
# Operations that are converted even if all operands are constants. The shape of a broadcast may depend on the
# number of images, and casts between floating dtypes are dropped.
_CONVERTED_CONSTANTS = frozenset(("broadcast_in_dim", "convert_element_type"))


def convert(graph: Graph, jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Adds the equations of a jaxpr to a graph, and returns the values of its results.

    Args:
      graph: graph to which nodes are added.
      jaxpr: the jaxpr.
      constants: arrays for the `constvars` of the jaxpr.
      inputs: values for the `invars` of the jaxpr.

    Raises:
      UserError: an operation cannot be written as ONNX.
    """
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {v: Constant(np.asarray(value)) for v, value in zip(jaxpr.constvars, constants, strict=True)}

    def read(variable: Any) -> Value:
        return Constant(np.asarray(variable.val)) if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        outer = graph.path
        graph.path = f"{outer}/{module_path(equation, graph.network)}".strip("/")
        results = _convert_equation(graph, equation, [read(variable) for variable in equation.invars])
        graph.path = outer
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _convert_equation(graph: Graph, equation: JaxprEqn, arguments: list[Value]) -> list[Value]:
    operation, fields = equation.primitive.name, equation.params
    inner = fields.get("jaxpr", fields.get("call_jaxpr"))
    if isinstance(inner, ClosedJaxpr):
        return convert(graph, inner.jaxpr, inner.consts, arguments)
    if isinstance(inner, Jaxpr):
        return convert(graph, inner, [], arguments)
    if operation in _IDENTITIES:
        return arguments
    constants = [argument for argument in arguments if isinstance(argument, Constant)]
    if len(constants) == len(arguments) and operation not in _CONVERTED_CONSTANTS:
        return _evaluate(equation, constants)
    if operation not in _CONVERSIONS:
        raise UserError(f"{graph.network} computes {operation}, which cannot be written as ONNX")
    return [_CONVERSIONS[operation](graph, equation, *arguments)]


def _evaluate(equation: JaxprEqn, arguments: list[Constant]) -> list[Value]:
    """Evaluates an equation whose operands are constants."""
    results = equation.primitive.bind(*(as_float32(argument.value) for argument in arguments), **equation.params)
    name = next((argument.name for argument in arguments if argument.name), "")
    results = results if equation.primitive.multiple_results else [results]
    return [Constant(np.asarray(result), name) for result in results]
