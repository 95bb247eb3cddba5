"""Convolutions in float32 and bfloat16, and their gradients, computed by oneDNN."""

import functools
import math
from typing import NamedTuple

import jax

from flaxcnn.ops import onednn
from flaxcnn.ops.geometry import Geometry
from flaxcnn.ops.onednn_library import DTYPES, Handle, Library, dims
from flaxcnn.ops.onednn_program import Program

Array = jax.Array

# Values of the library's enumerations, from its header dnnl_types.h.
_TRAINING, _DIRECT = 64, 1
# For each array, and then for its gradient: number of the argument, and number of the query for its layout.
_ARRAYS = {"input": ((1, 129), (129, 130)), "kernel": ((33, 161), (131, 132)), "output": ((17, 145), (133, 134))}


class _Call(NamedTuple):
    """Shapes and parameters for which a program is built.

    Attributes:
      result: "output" for the convolution, or "input" or "kernel" for the gradient with respect to that array.
      dtype: "float32" or "bfloat16".
      input, kernel, output: shapes of XLA's arrays: (B, H, W, C), (height, width, C / groups, features) and
        (B, H', W', features).
      strides, paddings, groups: as in `Geometry`.
    """

    result: str
    dtype: str
    input: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    strides: tuple[int, int]
    paddings: tuple[tuple[int, int], tuple[int, int]]
    groups: int

    @property
    def threads(self) -> int | None:
        """Fastest number of threads; None for all."""
        products = math.prod(self.output) * math.prod(self.kernel[:3])
        return onednn.threads_for(products, math.prod(self.input) + math.prod(self.output))

    @property
    def has_pixels_for_all_places(self) -> bool:
        """Whether each kernel element meets a pixel; in bfloat16, oneDNN leaves other gradients unwritten."""
        axes = zip(self.input[1:3], self.kernel, self.output[1:3], self.strides, self.paddings, strict=False)
        return all(
            any(0 <= number * stride + place - before < size for number in range(windows))
            for size, window, windows, stride, (before, _) in axes
            for place in range(window)
        )


def _program(call: _Call, library: Library, threads: int) -> Program:
    """Returns the program for a call. If the library prefers another layout of an array, a step copies the array.

    Raises:
      RuntimeError: the library has no fast implementation.
    """
    program = Program(library, threads)
    layouts = {array: _map_layout(library, getattr(call, array), call.dtype) for array in ("input", "output")}
    layouts["kernel"], any_kernel = _kernel_layouts(library, call)
    made = _describe(library, call, layouts["input"], any_kernel, layouts["output"])
    if library.name_of(made).startswith("ref"):
        raise RuntimeError("the library has a plain loop for it alone")
    arguments = {}
    for array in (*(array for array in _ARRAYS if array != call.result), call.result):
        is_gradient = call.result != "output" and array in (call.result, "output")
        number, question = (pair[is_gradient] for pair in _ARRAYS[array])
        layout = library.layout_of(made, question)
        outside = inside = layouts[array], program.outside(layouts[array])
        if array == "kernel" != call.result and (block := _block_of(library, call, layout)):
            operand, rows = len(arguments), math.prod(call.kernel[:3])
            inside = layout, program.pack(operand, layout, rows, call.kernel[3], block)
        elif not library.equal(layout, layouts[array]):
            inside = layout, program.inside(layout)
            if array != call.result:
                program.copy(outside, inside)
        arguments[number] = inside[1]
    program.run(made, arguments)
    if inside is not outside:  # here they refer to the result, the last array of the loop
        program.copy(inside, outside)
    return program


def _block_of(library: Library, call: _Call, layout: Handle) -> int | None:
    """Returns the length of a kernel layout's blocks of features if `Program.pack` can write it, otherwise None."""
    height, width, channels, features = call.kernel
    block = library.block_of(layout) if call.groups == 1 and call.dtype == "float32" else None
    if not block or features % block:
        return None
    steps = (block * height * width * channels, block, block * width * channels, block * channels)
    return block if library.steps_of(layout, 4) == steps else None


def _map_layout(library: Library, shape: tuple[int, ...], dtype: str) -> Handle:
    batch, height, width, channels = shape
    steps = (height * width * channels, 1, width * channels, channels)
    return library.layout((batch, channels, height, width), steps, dtype)


def _kernel_layouts(library: Library, call: _Call) -> tuple[Handle, Handle]:
    """Returns the layout of XLA's kernel, and the layout that lets the library choose."""
    height, width, channels, features = call.kernel
    sizes = (call.groups, features // call.groups, channels, height, width)
    steps = (features // call.groups, 1, features, width * channels * features, channels * features)
    if call.groups == 1:
        sizes, steps = sizes[1:], steps[1:]
    return library.layout(sizes, steps, call.dtype), library.layout(sizes, None, call.dtype)


def _describe(library: Library, call: _Call, x: Handle, kernel: Handle, y: Handle) -> Handle:
    """Returns the description of the primitive for a call and the layouts of input, kernel and output."""

    def describe(kind: str, *arguments: Handle | int | None) -> Handle:
        geometry = map(dims, (call.strides, (0, 0), *zip(*call.paddings, strict=True)))
        hint = () if kind == "forward" else (forward,)
        function = f"dnnl_convolution_{kind}_primitive_desc_create"
        return library.new(function, library.engine, *arguments, *geometry, *hint, library.attributes)

    forward = describe("forward", _TRAINING, _DIRECT, x, kernel, None, y)
    if call.result == "input":
        return describe("backward_data", _DIRECT, x, kernel, y)
    if call.result == "kernel":
        return describe("backward_weights", _DIRECT, x, kernel, None, y)
    return forward


@functools.cache
def _is_served(programs: onednn.ProgramTable, call: _Call) -> bool:
    """Registers the program for a call; returns False if the library has no fast implementation."""
    if call.result == "kernel" and not call.has_pixels_for_all_places:
        return False
    return programs.add(onednn.key_of(call), functools.partial(_program, call), call.threads)


def convolution(result: str, shape: tuple[int, ...], *operands: Array, geometry: Geometry) -> Array | None:
    """Computes a convolution or one of its gradients by oneDNN; returns None if oneDNN is not available for it.

    Args:
      result: "output" for the convolution, or "input" or "kernel" for the gradient with respect to that array.
      shape: shape of the result.
      operands: the other two of input, kernel and output, in this order, float32 or bfloat16.
      geometry: strides, paddings and groups.

    Returns:
      The result, with the shape `shape` and the dtype of the operands, or None.
    """
    programs, dtype = onednn.programs(), operands[0].dtype
    if dtype.name not in DTYPES or programs is None:
        return None
    shapes = onednn.shapes_of(result, shape, operands)
    call = _Call(
        result, dtype.name, **shapes, strides=geometry.strides, paddings=geometry.paddings, groups=geometry.groups
    )
    return onednn.run(call, shape, operands) if _is_served(programs, call) else None
