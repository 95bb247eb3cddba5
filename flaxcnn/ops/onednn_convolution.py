"""Convolutions of float32 and bfloat16 as programs of oneDNN."""

import functools
import hashlib
import math
from typing import NamedTuple

import jax
import numpy as np

from flaxcnn.ops import onednn
from flaxcnn.ops.geometry import Geometry

Array = jax.Array
# Multiply-adds, and values read and written, of what one core has done by the time that another one is awake.
FEW_PRODUCTS, FEW_VALUES = 10**7, 5 * 10**5

# The library's numbers, from its dnnl_types.h.
_TRAINING, _DIRECT = 64, 1
# Of an array, then of its gradient: its number among the arguments, and that of the question for its layout.
_ARRAYS = {"input": ((1, 129), (129, 130)), "kernel": ((33, 161), (131, 132)), "output": ((17, 145), (133, 134))}


class _Call(NamedTuple):
    """What a program is made for.

    Attributes:
      result: the array that is asked for, "input", "kernel" or "output", given the two others.
      dtype: "float32" or "bfloat16".
      input, kernel, output: shapes as XLA has them: (B, H, W, C), (height, width, C / groups, features).
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
    def is_small(self) -> bool:
        """Whether one core is as quick at it as several are."""
        products = math.prod(self.output) * math.prod(self.kernel[:3])
        return products < FEW_PRODUCTS and math.prod(self.input) + math.prod(self.output) < FEW_VALUES

    @property
    def has_pixels_for_all_places(self) -> bool:
        """Whether no place of the kernel sees padding alone: in bfloat16 its gradient would be left unwritten."""
        axes = zip(self.input[1:3], self.kernel, self.output[1:3], self.strides, self.paddings, strict=False)
        return all(
            any(0 <= number * stride + place - before < size for number in range(windows))
            for size, window, windows, stride, (before, _) in axes
            for place in range(window)
        )

    @property
    def key(self) -> int:
        """A number for it, the same in every process."""
        digest = hashlib.blake2b(repr(tuple(self)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def _program(call: _Call, library: onednn.Library, threads: int) -> onednn.Program:
    """Returns a program for a call. Where the library wants an array in another layout, a step copies it.

    Raises:
      RuntimeError: the library has no quick way for it.
    """
    program = onednn.Program(library, threads)
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
        outside = layouts[array], program.outside(layouts[array])
        inside = outside if library.equal(layout, layouts[array]) else (layout, program.inside(layout))
        if inside is not outside and array != call.result:
            program.copy(outside, inside)
        arguments[number] = inside[1]
    program.run(made, arguments)
    if inside is not outside:  # of the result, which was the last
        program.copy(inside, outside)
    return program


def _map_layout(library: onednn.Library, shape: tuple[int, ...], dtype: str) -> onednn.Handle:
    batch, height, width, channels = shape
    steps = (height * width * channels, 1, width * channels, channels)
    return library.layout((batch, channels, height, width), steps, dtype)


def _kernel_layouts(library: onednn.Library, call: _Call) -> tuple[onednn.Handle, onednn.Handle]:
    """Returns the layout of the kernel as XLA has it, and any."""
    height, width, channels, features = call.kernel
    sizes = (call.groups, features // call.groups, channels, height, width)
    steps = (features // call.groups, 1, features, width * channels * features, channels * features)
    if call.groups == 1:
        sizes, steps = sizes[1:], steps[1:]
    return library.layout(sizes, steps, call.dtype), library.layout(sizes, None, call.dtype)


def _describe(
    library: onednn.Library, call: _Call, x: onednn.Handle, kernel: onednn.Handle, y: onednn.Handle
) -> onednn.Handle:
    """Returns the description of a primitive for arrays of these layouts."""

    def describe(kind: str, *arguments: onednn.Handle | int | None) -> onednn.Handle:
        geometry = map(onednn.dims, (call.strides, (0, 0), *zip(*call.paddings, strict=True)))
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
def _is_served(library: onednn.Library, call: _Call) -> bool:
    """Returns whether the library has a quick program for a call, which from now on is there."""
    if call.result == "kernel" and not call.has_pixels_for_all_places:
        return False
    return library.add(call.key, functools.partial(_program, call), 1 if call.is_small else library.threads)


def convolution(result: str, shape: tuple[int, ...], *operands: Array, geometry: Geometry) -> Array | None:
    """Returns a convolution, or a gradient of it, as `flaxcnn.ops.convolution` has them; None if there is none.

    Args:
      result: the array that is asked for: "input", "kernel" or "output".
      shape: its shape.
      operands: the two others, in this order, float32 or bfloat16.
      geometry: strides, paddings and groups.
    """
    dtype = operands[0].dtype
    library = onednn.library()
    if dtype.name not in onednn.DTYPES or library is None:
        return None
    others = (array for array in _ARRAYS if array != result)
    shapes = dict(zip(others, (x.shape for x in operands), strict=True)) | {result: shape}
    call = _Call(
        result, dtype.name, **shapes, strides=geometry.strides, paddings=geometry.paddings, groups=geometry.groups
    )
    if not _is_served(library, call):
        return None
    return jax.ffi.ffi_call(onednn.NAME, jax.ShapeDtypeStruct(shape, dtype))(*operands, key=np.int64(call.key))
