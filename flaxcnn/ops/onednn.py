"""Calls of oneDNN, the library that torch uses on CPUs, from programs that XLA compiles.

The package `onednn-cpu-gomp` provides the library for Linux on x86-64. Without the package, JAX's own operations
are used. A `Program` is a sequence of oneDNN primitives, built once for given shapes. XLA programs call the handler
in `onednn.ll`, which llvmlite compiles, and pass the key of a `Program`. Keys are equal in all processes, so JAX's
persistent cache of compiled programs can be used.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcnn.cores import available_cores

Handle = ctypes.c_void_p
PACKAGE, FILE = "onednn-cpu-gomp", "libdnnl.so.3"
NAME = "flaxcnn_onednn"
# Size of the hash table of programs, of which at most half is filled. A network has a few hundred convolutions and
# gradients, each with up to a megabyte of machine code. Once half is filled, JAX's own operations are used.
SLOTS = 2**12
# One core finishes this many multiply-adds, or reads and writes this many values, before a second core is awake.
FEW_PRODUCTS, FEW_VALUES = 10**7, 5 * 10**5

# Values of the library's enumerations, from its header dnnl_types.h.
DTYPES = {"bfloat16": 2, "float32": 3}
_CPU, _IN_ORDER, _ANY_LAYOUT, _SCRATCHPAD_IS_OURS = 1, 1, 1, 1
_FROM, _TO, _SCRATCHPAD = 1, 17, 80
_NAME_OF, _SCRATCHPAD_OF = 8, 136
_STEPS, _BLOCK_COUNT, _BLOCK_LENGTHS, _BLOCK_AXES = 14, 263, 264, 265
_CACHE_LINE = 64


def _structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# The structures of onednn.ll, with equal layouts.
_Slot = _structure("_Slot", key=ctypes.c_int64, program=Handle)
_Program = _structure(
    "_Program",
    outside=Handle,
    insides=ctypes.c_int64,
    inside=Handle,
    steps=ctypes.c_int64,
    step=Handle,
    bytes=ctypes.c_int64,
    threads=ctypes.c_int32,
)
_Inside = _structure("_Inside", memory=Handle, offset=ctypes.c_int64)
_Step = _structure("_Step", primitive=Handle, count=ctypes.c_int32, arguments=Handle)
_Packing = _structure("_Packing", **dict.fromkeys(("operand", "offset", "rows", "row", "block"), ctypes.c_int64))
_Argument = _structure("_Argument", number=ctypes.c_int, memory=Handle)
_Shared = _structure(
    "_Shared",
    lock=ctypes.c_char * 64,
    stream=Handle,
    space=Handle,
    slots=Handle,
    mask=ctypes.c_int64,
)


class Library:
    """The loaded oneDNN library, its programs, and the memory that the programs share.

    A `Handle` is a pointer to an object of the library: a layout (memory descriptor), an array (memory), a
    primitive or the description of one.
    """

    def __init__(self, path: Path):
        """Loads the library from a file.

        Raises:
          ImportError, OSError: a library or package that it depends on is missing.
        """
        with _threads_that_sleep():
            self._functions, self._openmp = ctypes.CDLL(str(path)), ctypes.CDLL("libgomp.so.1")
        self._functions.dnnl_primitive_desc_query_md.restype = Handle
        self._functions.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.engine = self.new("dnnl_engine_create", _CPU, ctypes.c_size_t(0))
        self.attributes = self.new("dnnl_primitive_attr_create")
        self.do("dnnl_primitive_attr_set_scratchpad_mode", self.attributes, _SCRATCHPAD_IS_OURS)
        # OpenMP accepts a list of numbers here; all but the first are for nested parallel regions.
        self.threads = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or available_cores())
        self._making = threading.Lock()
        self._slots, self._used, self._kept, self._space = (_Slot * SLOTS)(), 0, [], np.empty(0, np.uint8)
        # A lock lets one program run at a time: a program keeps all cores busy, and two would slow each other down.
        self._shared = _Shared(
            stream=self.new("dnnl_stream_create", self.engine, _IN_ORDER),
            slots=ctypes.addressof(self._slots),
            mask=SLOTS - 1,
        )
        self._compiled = self._compile()

    @property
    def version(self) -> str:
        """Version of the library, such as "3.2.0"."""
        self._functions.dnnl_version.restype = ctypes.POINTER(ctypes.c_int * 3)
        return ".".join(map(str, self._functions.dnnl_version().contents))

    def do(self, function: str, *arguments: Any) -> None:
        """Calls a function of the library that returns a status; raises RuntimeError if the status is an error."""
        if status := getattr(self._functions, function)(*arguments):
            raise RuntimeError(f"{function} returned {status}")

    def new(self, function: str, *arguments: Any) -> Handle:
        """Calls a function of the library that creates an object; returns the object, which is never freed."""
        handle = Handle()
        self.do(function, ctypes.byref(handle), *arguments)
        return handle

    def layout(self, sizes: Sequence[int], steps: Sequence[int] | None, dtype: str) -> Handle:
        """Returns the layout of an array.

        Args:
          sizes: length of each axis.
          steps: for each axis, the number of values between neighbors in memory; None lets the library choose.
          dtype: "float32" or "bfloat16".
        """
        kind, last = ("strides", dims(steps)) if steps else ("tag", _ANY_LAYOUT)
        arguments = len(sizes), dims(sizes), DTYPES[dtype], last
        return self.new(f"dnnl_memory_desc_create_with_{kind}", *arguments)

    def name_of(self, description: Handle) -> str:
        """Returns the name of the implementation that the library selected for a primitive, such as "jit:avx2"."""
        name = ctypes.c_char_p()
        self.do("dnnl_primitive_desc_query", description, _NAME_OF, 0, ctypes.byref(name))
        return (name.value or b"ref").decode()

    def layout_of(self, description: Handle, what: int) -> Handle:
        """Returns the layout that a primitive expects of an argument; `what` is the library's query number."""
        return Handle(self._functions.dnnl_primitive_desc_query_md(description, what, 0))

    def block_of(self, layout: Handle) -> int | None:
        """Returns the block length of a layout that divides its first axis into blocks; None for other layouts."""
        query, count = self._functions.dnnl_memory_desc_query, ctypes.c_int32()
        query(layout, _BLOCK_COUNT, ctypes.byref(count))
        lengths, axes = ctypes.POINTER(ctypes.c_int64)(), ctypes.POINTER(ctypes.c_int64)()
        query(layout, _BLOCK_LENGTHS, ctypes.byref(lengths))
        query(layout, _BLOCK_AXES, ctypes.byref(axes))
        return lengths[0] if count.value == 1 and axes[0] == 0 else None

    def steps_of(self, layout: Handle, axes: int) -> tuple[int, ...]:
        """Returns for each axis the number of values in memory between neighbors, or between neighboring blocks."""
        steps = ctypes.POINTER(ctypes.c_int64)()
        self._functions.dnnl_memory_desc_query(layout, _STEPS, ctypes.byref(steps))
        return tuple(steps[:axes])

    def size(self, layout: Handle) -> int:
        """Returns the size in bytes of an array with a layout, rounded up to whole cache lines."""
        return -(-self._functions.dnnl_memory_desc_get_size(layout) // _CACHE_LINE) * _CACHE_LINE

    def equal(self, layout: Handle, other: Handle) -> bool:
        """Returns whether two layouts are equal."""
        return bool(self._functions.dnnl_memory_desc_equal(layout, other))

    def add(self, key: int, make: Callable[["Library", int], "Program"], threads: int | None) -> bool:
        """Registers a program under a key; returns False if the table is full or there is no fast implementation.

        Args:
          key: unique key of the program.
          make: `make(library, threads)`, which returns the program; it raises RuntimeError if the library has no
            fast implementation.
          threads: number of threads that the program runs on; None for all.
        """
        threads = threads or self.threads
        with self._making, self._on(threads):
            if self._used >= SLOTS // 2:
                return False
            try:
                program = make(self, threads)
            except RuntimeError:
                return False
            self._place(key, program)
            return True

    def _place(self, key: int, program: "Program") -> None:
        self._used += 1
        structure = program.structure()
        self._kept.append((program, structure))
        if self._space.size < program.size + _CACHE_LINE:
            self._grow(program.size + _CACHE_LINE)
        slot = key % SLOTS
        while self._slots[slot].program:
            slot = (slot + 1) % SLOTS
        self._slots[slot].key = key
        self._slots[slot].program = ctypes.addressof(structure)  # set last, because it marks the slot as filled

    @contextlib.contextmanager
    def _on(self, threads: int) -> Iterator[None]:
        """Context manager in which the library creates primitives for a number of threads."""
        before = self._openmp.omp_get_max_threads()
        self._openmp.omp_set_num_threads(threads)
        try:
            yield
        finally:
            self._openmp.omp_set_num_threads(before)

    def _grow(self, size: int) -> None:
        """Enlarges the shared space for the programs' internal arrays, while no program runs."""
        process = ctypes.CDLL(None)
        process.pthread_mutex_lock(ctypes.byref(self._shared))
        self._space = np.empty(size, np.uint8)
        self._shared.space = -(-self._space.ctypes.data // _CACHE_LINE) * _CACHE_LINE
        process.pthread_mutex_unlock(ctypes.byref(self._shared))

    def _compile(self) -> Any:
        """Compiles onednn.ll and registers its handler with XLA; returns the compiler, which owns the code."""
        from llvmlite import binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(Path(__file__).with_suffix(".ll").read_text())
        compiler = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
        llvm.add_symbol("shared", ctypes.addressof(self._shared))
        for functions in (self._functions, self._openmp):
            for function in module.functions:
                with contextlib.suppress(AttributeError):
                    address = ctypes.cast(getattr(functions, function.name), Handle).value
                    llvm.add_symbol(function.name, address)
        compiler.finalize_object()
        handler = ctypes.CFUNCTYPE(Handle, Handle)(compiler.get_function_address("handle"))
        jax.ffi.register_ffi_target(NAME, jax.ffi.pycapsule(handler), platform="cpu")
        return compiler


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


def dims(sizes: Sequence[int]) -> ctypes.Array:
    """Returns one number per axis, in the array type of the library."""
    return (ctypes.c_int64 * 12)(*sizes)


@contextlib.contextmanager
def _threads_that_sleep() -> Iterator[None]:
    """Context manager in which OpenMP, if loaded, lets waiting threads sleep: XLA's threads use the same cores."""
    name, value = "OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY")
    os.environ[name] = value or "PASSIVE"
    try:
        yield
    finally:
        if value is None:
            del os.environ[name]


@functools.cache
def library() -> Library | None:
    """Returns the library, or None if it is not installed or cannot be loaded."""
    try:
        files = importlib.metadata.files(PACKAGE) or ()
        return Library(Path(str(next(file for file in files if file.name == FILE).locate())))
    except (ImportError, StopIteration, OSError):
        return None


def key_of(call: tuple) -> int:
    """Returns the key of the program for a call; equal calls have equal keys in all processes."""
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
    loaded = library()
    return f"oneDNN {loaded.version} on {loaded.threads} core{'s'[: loaded.threads > 1]}" if loaded else "XLA"
