"""A sequence of oneDNN primitives, built once for given shapes, as the structure that onednn.ll runs."""

import ctypes
from typing import Any

from flaxcnn.ops.onednn_library import Handle, Library

# Values of the library's enumerations, from its header dnnl_types.h.
_FROM, _TO, _SCRATCHPAD = 1, 17, 80
_SCRATCHPAD_OF = 136


def structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    """Returns a structure of onednn.ll, with an equal layout."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_Program = structure(
    "_Program",
    outside=Handle,
    insides=ctypes.c_int64,
    inside=Handle,
    steps=ctypes.c_int64,
    step=Handle,
    bytes=ctypes.c_int64,
    threads=ctypes.c_int32,
)
_Inside = structure("_Inside", memory=Handle, offset=ctypes.c_int64)
_Step = structure("_Step", primitive=Handle, count=ctypes.c_int32, arguments=Handle)
_Packing = structure("_Packing", **dict.fromkeys(("operand", "offset", "rows", "row", "block"), ctypes.c_int64))
_Argument = structure("_Argument", number=ctypes.c_int, memory=Handle)


class Program:
    """A sequence of oneDNN primitives.

    The primitives work on outside arrays, which are XLA's operands and result, and on inside arrays, which lie in a
    memory space that all programs share.
    """

    def __init__(self, library: Library, threads: int):
        """Creates a program without steps, to run on a number of threads."""
        self._library, self._threads, self.size = library, threads, 0
        self._outside, self._inside, self._steps, self._arguments, self._result_bytes = [], [], [], [], 0

    def outside(self, layout: Handle) -> Handle:
        """Declares the next outside array and returns it: first the operands in order, finally the result."""
        self._outside.append(self._memory(layout))
        self._result_bytes = self._library.size(layout)
        return self._outside[-1]

    def inside(self, layout: Handle) -> Handle:
        """Declares an array in the shared space and returns it."""
        memory = self._memory(layout)
        self._inside.append((memory, self.size))
        self.size += self._library.size(layout)
        return memory

    def copy(self, source: tuple[Handle, Handle], target: tuple[Handle, Handle]) -> None:
        """Adds a step that copies one array into another, with its layout; each is given as (layout, array)."""
        engine = self._library.engine
        arguments = source[0], engine, target[0], engine, self._library.attributes
        description = self._library.new("dnnl_reorder_primitive_desc_create", *arguments)
        self.run(description, {_FROM: source[1], _TO: target[1]})

    def pack(self, operand: int, layout: Handle, rows: int, columns: int, block: int) -> Handle:
        """Adds a step that packs an operand, a float32 matrix, into a new inside array, and returns that array.

        Args:
          operand: position of the operand.
          layout: layout of the packed array, which consists of blocks of columns, each stored row by row.
          rows, columns: shape of the matrix.
          block: number of columns in a block; it divides `columns`.
        """
        packing = _Packing(operand, self.size, rows, 4 * columns, 4 * block)
        self._arguments.append(packing)
        self._steps.append((None, 0, ctypes.addressof(packing)))
        return self.inside(layout)

    def run(self, description: Handle, arguments: dict[int, Handle]) -> None:
        """Adds a step that runs a primitive; the keys of `arguments` are the library's numbers of the arguments."""
        scratchpad = self.inside(self._library.layout_of(description, _SCRATCHPAD_OF))
        given = (_Argument * (len(arguments) + 1))(*arguments.items(), (_SCRATCHPAD, scratchpad))
        self._arguments.append(given)
        primitive = self._library.new("dnnl_primitive_create", description)
        self._steps.append((primitive, len(given), ctypes.addressof(given)))

    def structure(self) -> ctypes.Structure:
        """Returns the program as the structure that onednn.ll reads."""
        self._arrays = (
            (Handle * len(self._outside))(*self._outside),
            (_Inside * len(self._inside))(*self._inside),
            (_Step * len(self._steps))(*self._steps),
        )
        outside, inside, steps = map(ctypes.addressof, self._arrays)
        return _Program(
            outside, len(self._inside), inside, len(self._steps), steps, self._result_bytes, self._threads
        )

    def _memory(self, layout: Handle) -> Handle:
        """Returns an array whose address is set when the program runs."""
        return self._library.new("dnnl_memory_create", layout, self._library.engine, None)
