"""Matrix products in float32 and bfloat16, and their gradients, computed by oneDNN."""

import functools
from typing import NamedTuple

import jax

from flaxcnn.ops import onednn
from flaxcnn.ops.onednn_library import DTYPES, Handle, Library
from flaxcnn.ops.onednn_program import Program

Array = jax.Array
# The library's numbers of the arguments, from its header dnnl_types.h.
_SOURCE, _WEIGHTS, _RESULT = 1, 33, 17


class _Call(NamedTuple):
    """Shapes for which a program is built.

    Attributes:
      result: "output" for the product, or "input" or "kernel" for the gradient with respect to that array.
      dtype: "float32" or "bfloat16".
      rows, channels, features: input (rows, channels), kernel (channels, features), output (rows, features).
    """

    result: str
    dtype: str
    rows: int
    channels: int
    features: int

    @property
    def threads(self) -> int | None:
        """Fastest number of threads; None for all."""
        values = self.rows * (self.channels + self.features) + self.channels * self.features
        return onednn.threads_for(self.rows * self.channels * self.features, values)


def _program(call: _Call, library: Library, threads: int) -> Program:
    rows, channels, features = call[2:]
    program = Program(library, threads)

    def layout(shape: tuple[int, int], *, transposed: bool = False) -> Handle:
        """Returns the layout of a matrix that is stored row by row, or of its transpose."""
        steps = (shape[1], 1)
        return library.layout(
            shape[::-1] if transposed else shape, steps[::-1] if transposed else steps, call.dtype
        )

    if call.result == "output":
        source, weights, result = layout((rows, channels)), layout((channels, features)), layout((rows, features))
        places = {_SOURCE: program.outside(source), _WEIGHTS: program.outside(weights)}
    elif call.result == "input":
        source, weights = layout((rows, features)), layout((channels, features), transposed=True)
        result = layout((rows, channels))
        places = {_WEIGHTS: program.outside(weights), _SOURCE: program.outside(source)}
    else:
        source, weights = layout((rows, channels), transposed=True), layout((rows, features))
        result = layout((channels, features))
        places = {_SOURCE: program.outside(source), _WEIGHTS: program.outside(weights)}
    function = "dnnl_matmul_primitive_desc_create"
    made = library.new(function, library.engine, source, weights, None, result, library.attributes)
    program.run(made, places | {_RESULT: program.outside(result)})
    return program


@functools.cache
def _is_served(programs: onednn.ProgramTable, call: _Call) -> bool:
    # For a single row, the time is that of reading the kernel, and XLA reads it faster.
    if call.rows == 1 and call.result == "output":
        return False
    return programs.add(onednn.key_of(call), functools.partial(_program, call), call.threads)


def dense(result: str, shape: tuple[int, ...], *operands: Array) -> Array | None:
    """Computes a matrix product or one of its gradients by oneDNN; returns None if oneDNN is not available for it.

    Args:
      result: "output" for the product, or "input" or "kernel" for the gradient with respect to that array.
      shape: shape of the result.
      operands: the other two of input, kernel and output, in this order, float32 or bfloat16.

    Returns:
      The result, with the shape `shape` and the dtype of the operands, or None.
    """
    programs, dtype = onednn.programs(), operands[0].dtype
    if dtype.name not in DTYPES or programs is None:
        return None
    shapes = onednn.shapes_of(result, shape, operands)
    (rows, channels), (_, features) = shapes["input"], shapes["kernel"]
    call = _Call(result, dtype.name, rows, channels, features)
    return onednn.run(call, shape, operands) if _is_served(programs, call) else None
