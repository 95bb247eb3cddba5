"""Calls of oneDNN from programs that XLA compiles.

XLA programs call the handler in `onednn.ll`, which llvmlite compiles, and pass the key of a `Program`. Keys are
equal in all processes, so JAX's persistent cache of compiled programs can be used. Without the library, JAX's own
operations are used.
"""

import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcnn.ops.onednn_library import CACHE_LINE, Handle, Library, library
from flaxcnn.ops.onednn_program import Program, structure

NAME = "flaxcnn_onednn"
# Size of the hash table of programs, of which at most half is filled. A network has a few hundred convolutions and
# gradients, each with up to a megabyte of machine code. Once half is filled, JAX's own operations are used.
SLOTS = 2**12
# One core finishes this many multiply-adds, or reads and writes this many values, before a second core is awake.
FEW_PRODUCTS, FEW_VALUES = 10**7, 5 * 10**5

# The structures of onednn.ll, with equal layouts.
_Slot = structure("_Slot", key=ctypes.c_int64, program=Handle)
_Shared = structure(
    "_Shared",
    lock=ctypes.c_char * 64,
    stream=Handle,
    space=Handle,
    slots=Handle,
    mask=ctypes.c_int64,
)


class ProgramTable:
    """The programs that XLA programs may call, and the memory that they share.

    Attributes:
      library: the library whose primitives the programs run.
    """

    def __init__(self, library: Library):
        """Creates an empty table, and registers the handler that runs its programs with XLA.

        Raises:
          ImportError: llvmlite is missing.
        """
        self.library = library
        self._making = threading.Lock()
        self._slots, self._used, self._kept, self._space = (_Slot * SLOTS)(), 0, [], np.empty(0, np.uint8)
        # A lock lets one program run at a time: a program keeps all cores busy, and two would slow each other down.
        self._shared = _Shared(stream=library.stream(), slots=ctypes.addressof(self._slots), mask=SLOTS - 1)
        self._compiled = self._compile()

    def add(self, key: int, make: Callable[[Library, int], Program], threads: int | None) -> bool:
        """Registers a program under a key; returns False if the table is full or there is no fast implementation.

        Args:
          key: unique key of the program.
          make: `make(library, threads)`, which returns the program; it raises RuntimeError if the library has no
            fast implementation.
          threads: number of threads that the program runs on; None for all.
        """
        threads = threads or self.library.threads
        with self._making, self.library.using(threads):
            if self._used >= SLOTS // 2:
                return False
            try:
                program = make(self.library, threads)
            except RuntimeError:
                return False
            self._place(key, program)
            return True

    def _place(self, key: int, program: Program) -> None:
        self._used += 1
        structure = program.structure()
        self._kept.append((program, structure))
        if self._space.size < program.size + CACHE_LINE:
            self._grow(program.size + CACHE_LINE)
        slot = key % SLOTS
        while self._slots[slot].program:
            slot = (slot + 1) % SLOTS
        self._slots[slot].key = key
        self._slots[slot].program = ctypes.addressof(structure)  # set last, because it marks the slot as filled

    def _grow(self, size: int) -> None:
        """Enlarges the shared space for the programs' internal arrays, while no program runs."""
        process = ctypes.CDLL(None)
        process.pthread_mutex_lock(ctypes.byref(self._shared))
        self._space = np.empty(size, np.uint8)
        self._shared.space = -(-self._space.ctypes.data // CACHE_LINE) * CACHE_LINE
        process.pthread_mutex_unlock(ctypes.byref(self._shared))

    def _compile(self) -> Any:
        """Compiles onednn.ll and registers its handler with XLA; returns the compiler, which owns the code."""
        from llvmlite import binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(Path(__file__).with_suffix(".ll").read_text())
        compiler = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
        llvm.add_symbol("shared", ctypes.addressof(self._shared))
        for function in module.functions:
            if address := self.library.address_of(function.name):
                llvm.add_symbol(function.name, address)
        compiler.finalize_object()
        handler = ctypes.CFUNCTYPE(Handle, Handle)(compiler.get_function_address("handle"))
        jax.ffi.register_ffi_target(NAME, jax.ffi.pycapsule(handler), platform="cpu")
        return compiler


@functools.cache
def programs() -> ProgramTable | None:
    """Returns the table of programs, or None if oneDNN or llvmlite is not installed."""
    loaded = library()
    try:
        return loaded and ProgramTable(loaded)
    except ImportError:
        return None


def key_of(call: tuple) -> int:
    """Returns the key of the oneDNN program for a call; equal calls have equal keys in all processes."""
    digest = hashlib.blake2b(repr(tuple(call)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def shapes_of(result: str, shape: tuple[int, ...], operands: Sequence[jax.Array]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of input, kernel and output by name; `operands` are the two other than `result`."""
    given = iter(operands)
    return {name: shape if name == result else next(given).shape for name in ("input", "kernel", "output")}


def run(call: tuple, shape: tuple[int, ...], operands: Sequence[jax.Array]) -> jax.Array:
    """Runs the program that is registered under the key of a call; the result has the dtype of the operands."""
    like = jax.ShapeDtypeStruct(shape, operands[0].dtype)
    return jax.ffi.ffi_call(NAME, like)(*operands, key=np.int64(key_of(call)))


def threads_for(products: int, values: int) -> int | None:
    """Returns the fastest number of threads for a program; None for all.

    Args:
      products: number of multiply-adds.
      values: number of values read and written.
    """
    return 1 if products < FEW_PRODUCTS and values < FEW_VALUES else None


def describe() -> str:
    """Returns a description of the backend for convolutions on CPUs: oneDNN with version and cores, or XLA."""
    table = programs()
    if table is None:
        return "XLA"
    cores = table.library.threads
    return f"oneDNN {table.library.version} on {cores} core{'s'[: cores > 1]}"
