"""The oneDNN library, which torch uses on CPUs, as Python functions.

The package `onednn-cpu-gomp` provides the library for Linux on x86-64.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxcnn.cores import available_cores

Handle = ctypes.c_void_p
PACKAGE, FILE = "onednn-cpu-gomp", "libdnnl.so.3"
CACHE_LINE = 64

# Values of the library's enumerations, from its header dnnl_types.h.
DTYPES = {"bfloat16": 2, "float32": 3}
_CPU, _IN_ORDER, _ANY_LAYOUT, _SCRATCHPAD_IS_OURS = 1, 1, 1, 1
_NAME_OF = 8
_STEPS, _BLOCK_COUNT, _BLOCK_LENGTHS, _BLOCK_AXES = 14, 263, 264, 265


class Library:
    """The loaded oneDNN library.

    A `Handle` is a pointer to an object of the library: a layout (memory descriptor), an array (memory), a
    primitive or the description of one.

    Attributes:
      engine: the CPU, as an object of the library.
      attributes: attributes of all primitives.
      threads: number of threads that the library uses.
    """

    def __init__(self, path: Path):
        """Loads the library from a file.

        Raises:
          OSError: a library that it depends on is missing.
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
        return -(-self._functions.dnnl_memory_desc_get_size(layout) // CACHE_LINE) * CACHE_LINE

    def equal(self, layout: Handle, other: Handle) -> bool:
        """Returns whether two layouts are equal."""
        return bool(self._functions.dnnl_memory_desc_equal(layout, other))

    def stream(self) -> Handle:
        """Returns a new stream, which runs primitives one after another."""
        return self.new("dnnl_stream_create", self.engine, _IN_ORDER)

    def address_of(self, function: str) -> int | None:
        """Returns the address of a function of the library or of OpenMP; None if neither has it."""
        for functions in (self._functions, self._openmp):
            with contextlib.suppress(AttributeError):
                return ctypes.cast(getattr(functions, function), Handle).value
        return None

    @contextlib.contextmanager
    def using(self, threads: int) -> Iterator[None]:
        """Context manager in which the library creates primitives for a number of threads."""
        before = self._openmp.omp_get_max_threads()
        self._openmp.omp_set_num_threads(threads)
        try:
            yield
        finally:
            self._openmp.omp_set_num_threads(before)


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
