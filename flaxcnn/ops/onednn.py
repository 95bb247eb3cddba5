"""oneDNN, the library that torch computes with on CPUs, called by XLA's programs.

The package `onednn-cpu-gomp` brings it, for Linux on x86-64. Where it is missing JAX's own operations compute.
XLA's programs call `onednn.ll`, which llvmlite compiles. They hold a number for each program of the library, the
same in every process, so that JAX's cache of compiled programs serves them.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

Handle = ctypes.c_void_p
PACKAGE, FILE = "onednn-cpu-gomp", "libdnnl.so.3"
NAME = "flaxcnn_onednn"
# "250000 100000": so many microseconds of cores in so many, or "max", for what runs in this container.
SHARE = Path("/sys/fs/cgroup/cpu.max")
# Half of them are filled: a network has a few hundred convolutions and gradients, each with up to a megabyte of
# machine code. What comes after those is left to JAX's own operations.
SLOTS = 2**12

# The library's numbers, from its dnnl_types.h.
DTYPES = {"bfloat16": 2, "float32": 3}
_CPU, _IN_ORDER, _ANY_LAYOUT, _SCRATCHPAD_IS_OURS = 1, 1, 1, 1
_FROM, _TO, _SCRATCHPAD = 1, 17, 80
_NAME_OF, _SCRATCHPAD_OF = 8, 136
_CACHE_LINE = 64


def _structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# As in onednn.ll.
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
    """The loaded library, and what its programs share."""

    def __init__(self, path: Path):
        """Loads it from a file.

        Raises:
          ImportError, OSError: something that it needs is not here.
        """
        with _threads_that_sleep():
            self._functions, self._openmp = ctypes.CDLL(str(path)), ctypes.CDLL("libgomp.so.1")
        self._functions.dnnl_primitive_desc_query_md.restype = Handle
        self._functions.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.engine = self.new("dnnl_engine_create", _CPU, ctypes.c_size_t(0))
        self.attributes = self.new("dnnl_primitive_attr_create")
        self.do("dnnl_primitive_attr_set_scratchpad_mode", self.attributes, _SCRATCHPAD_IS_OURS)
        # OpenMP takes a list, of which what comes after the first is for threads within threads.
        self.threads = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or available_cores())
        self._making = threading.Lock()
        self._slots, self._used, self._kept, self._space = (_Slot * SLOTS)(), 0, [], np.empty(0, np.uint8)
        # A program keeps all cores busy, so that two at a time would only be in each other's way.
        self._shared = _Shared(
            stream=self.new("dnnl_stream_create", self.engine, _IN_ORDER),
            slots=ctypes.addressof(self._slots),
            mask=SLOTS - 1,
        )
        self._compiled = self._compile()

    @property
    def version(self) -> str:
        """The library's version, such as "3.2.0"."""
        self._functions.dnnl_version.restype = ctypes.POINTER(ctypes.c_int * 3)
        return ".".join(map(str, self._functions.dnnl_version().contents))

    def do(self, function: str, *arguments: Any) -> None:
        """Calls a function that returns a status; raises RuntimeError if that is not success."""
        if status := getattr(self._functions, function)(*arguments):
            raise RuntimeError(f"{function} returned {status}")

    def new(self, function: str, *arguments: Any) -> Handle:
        """Returns what a function makes; it is kept as long as the process."""
        handle = Handle()
        self.do(function, ctypes.byref(handle), *arguments)
        return handle

    def layout(self, sizes: Sequence[int], steps: Sequence[int] | None, dtype: str) -> Handle:
        """Returns the layout of an array with so many values between neighbours on each axis; None for any."""
        kind, last = ("strides", dims(steps)) if steps else ("tag", _ANY_LAYOUT)
        arguments = len(sizes), dims(sizes), DTYPES[dtype], last
        return self.new(f"dnnl_memory_desc_create_with_{kind}", *arguments)

    def name_of(self, description: Handle) -> str:
        """Returns the name of the way in which a primitive computes."""
        name = ctypes.c_char_p()
        self.do("dnnl_primitive_desc_query", description, _NAME_OF, 0, ctypes.byref(name))
        return (name.value or b"ref").decode()

    def layout_of(self, description: Handle, what: int) -> Handle:
        """Returns the layout of one of a primitive's arrays."""
        return Handle(self._functions.dnnl_primitive_desc_query_md(description, what, 0))

    def size(self, layout: Handle) -> int:
        """Returns the bytes of an array, in whole lines of a cache."""
        return -(-self._functions.dnnl_memory_desc_get_size(layout) // _CACHE_LINE) * _CACHE_LINE

    def equal(self, layout: Handle, other: Handle) -> bool:
        """Returns whether two layouts are the same."""
        return bool(self._functions.dnnl_memory_desc_equal(layout, other))

    def add(self, key: int, make: Callable[["Library", int], "Program"], threads: int) -> bool:
        """Has calls with a key run a program; returns False where there is no room, or no quick way.

        Args:
          key: a number that no other program has.
          make: returns the program, for this library and so many threads; raises RuntimeError without a quick way.
          threads: on how many it runs.
        """
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
        self._slots[slot].program = ctypes.addressof(structure)  # last, because by it the slot counts as filled

    @contextlib.contextmanager
    def _on(self, threads: int) -> Iterator[None]:
        """Has the library make what it makes for so many threads."""
        before = self._openmp.omp_get_max_threads()
        self._openmp.omp_set_num_threads(threads)
        try:
            yield
        finally:
            self._openmp.omp_set_num_threads(before)

    def _grow(self, size: int) -> None:
        """Makes the space larger in which programs have their copies, while none of them runs."""
        process = ctypes.CDLL(None)
        process.pthread_mutex_lock(ctypes.byref(self._shared))
        self._space = np.empty(size, np.uint8)
        self._shared.space = -(-self._space.ctypes.data // _CACHE_LINE) * _CACHE_LINE
        process.pthread_mutex_unlock(ctypes.byref(self._shared))

    def _compile(self) -> Any:
        """Compiles and registers what XLA calls; returns what keeps it in memory."""
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
    """Steps of the library, on XLA's arrays and on arrays in a space that programs share."""

    def __init__(self, library: Library, threads: int):
        """Makes one without a step."""
        self._library, self._threads, self.size = library, threads, 0
        self._outside, self._inside, self._steps, self._arguments, self._result_bytes = [], [], [], [], 0

    def outside(self, layout: Handle) -> Handle:
        """Returns the next of XLA's arrays: the operands in their order, and at last the result."""
        self._outside.append(self._memory(layout))
        self._result_bytes = self._library.size(layout)
        return self._outside[-1]

    def inside(self, layout: Handle) -> Handle:
        """Returns an array in the space that programs share."""
        memory = self._memory(layout)
        self._inside.append((memory, self.size))
        self.size += self._library.size(layout)
        return memory

    def copy(self, source: tuple[Handle, Handle], target: tuple[Handle, Handle]) -> None:
        """Adds the step that copies an array, given as its layout and itself, into another one."""
        engine = self._library.engine
        arguments = source[0], engine, target[0], engine, self._library.attributes
        description = self._library.new("dnnl_reorder_primitive_desc_create", *arguments)
        self.run(description, {_FROM: source[1], _TO: target[1]})

    def run(self, description: Handle, arguments: dict[int, Handle]) -> None:
        """Adds the step that runs a primitive on arrays by their numbers."""
        scratchpad = self.inside(self._library.layout_of(description, _SCRATCHPAD_OF))
        given = (_Argument * (len(arguments) + 1))(*arguments.items(), (_SCRATCHPAD, scratchpad))
        self._arguments.append(given)
        primitive = self._library.new("dnnl_primitive_create", description)
        self._steps.append((primitive, len(given), ctypes.addressof(given)))

    def structure(self) -> ctypes.Structure:
        """Returns it as onednn.ll reads it."""
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
        """Returns an array that still has no place."""
        return self._library.new("dnnl_memory_create", layout, self._library.engine, None)


def dims(sizes: Sequence[int]) -> ctypes.Array:
    """Returns numbers, one for each axis, as the library takes them."""
    return (ctypes.c_int64 * 12)(*sizes)


@contextlib.contextmanager
def _threads_that_sleep() -> Iterator[None]:
    """Has OpenMP, when it is loaded, take note that waiting threads sleep: XLA has its own for the same cores."""
    name, value = "OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY")
    os.environ[name] = value or "PASSIVE"
    try:
        yield
    finally:
        if value is None:
            del os.environ[name]


def available_cores() -> int:
    """Returns the number of cores that this process may keep busy: its affinity, or its container's share."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        share, period = SHARE.read_text().split()
        cores = min(cores, max(1, int(share) // int(period)))
    return cores


@functools.cache
def library() -> Library | None:
    """Returns the library, or None where it is not installed or cannot be loaded."""
    try:
        files = importlib.metadata.files(PACKAGE) or ()
        return Library(Path(str(next(file for file in files if file.name == FILE).locate())))
    except (ImportError, StopIteration, OSError):
        return None


def describe() -> str:
    """Returns what computes convolutions on CPUs: the library with its version and cores, or XLA."""
    loaded = library()
    return f"oneDNN {loaded.version} on {loaded.threads} core{'s'[: loaded.threads > 1]}" if loaded else "XLA"
