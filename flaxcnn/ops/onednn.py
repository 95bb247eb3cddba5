"""Convolutions on CPUs by oneDNN, the library that torch computes them with.

The package `onednn-cpu-gomp` brings it, for Linux on x86-64. Where it is missing JAX's own operations compute.
XLA's programs call `onednn.ll`, which llvmlite compiles. They hold a number for each convolution, the same in every
process, so that JAX's cache of compiled programs serves them.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxcnn.ops.geometry import Geometry

Array = jax.Array
Handle = ctypes.c_void_p
PACKAGE, FILE = "onednn-cpu-gomp", "libdnnl.so.3"
NAME = "flaxcnn_convolution"
# "250000 100000": so many microseconds of cores in so many, or "max", for what runs in this container.
SHARE = Path("/sys/fs/cgroup/cpu.max")
# Half of them are filled: a network has a few hundred convolutions and gradients, each with up to a megabyte of
# machine code. What comes after those is left to JAX's own operations.
SLOTS = 2**12

# Multiply-adds, and values read and written, of what one core has done by the time that another one is awake.
FEW_PRODUCTS, FEW_VALUES = 10**7, 5 * 10**5

# The library's numbers, from its dnnl_types.h.
_DTYPES = {"bfloat16": 2, "float32": 3}
_CPU, _IN_ORDER, _ANY_LAYOUT, _TRAINING, _DIRECT, _SCRATCHPAD_IS_OURS = 1, 1, 1, 64, 1, 1
_FROM, _TO, _SCRATCHPAD = 1, 17, 80
_NAME_OF, _SCRATCHPAD_OF = 8, 136
# Of an array, then of its gradient: its number among the arguments, and that of the question for its layout.
_ARRAYS = {"input": ((1, 129), (129, 130)), "kernel": ((33, 161), (131, 132)), "output": ((17, 145), (133, 134))}
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

    def layout_of(self, description: Handle, what: int) -> Handle:
        """Returns the layout of one of a primitive's arrays."""
        return Handle(self._functions.dnnl_primitive_desc_query_md(description, what, 0))

    def size(self, layout: Handle) -> int:
        """Returns the bytes of an array, in whole lines of a cache."""
        return -(-self._functions.dnnl_memory_desc_get_size(layout) // _CACHE_LINE) * _CACHE_LINE

    def equal(self, layout: Handle, other: Handle) -> bool:
        """Returns whether two layouts are the same."""
        return bool(self._functions.dnnl_memory_desc_equal(layout, other))

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another convolution."""
        return self._used >= SLOTS // 2

    def add(self, key: int, convolution: "_Convolution") -> None:
        """Has calls with a key run a convolution."""
        self._used += 1
        program = convolution.program()
        self._kept.append((convolution, program))
        if self._space.size < convolution.size + _CACHE_LINE:
            self._grow(convolution.size + _CACHE_LINE)
        slot = key % SLOTS
        while self._slots[slot].program:
            slot = (slot + 1) % SLOTS
        self._slots[slot].key = key
        self._slots[slot].program = ctypes.addressof(program)  # last, because by it the slot counts as filled

    @contextlib.contextmanager
    def on(self, threads: int) -> Iterator[None]:
        """Has what is made be made for so many threads."""
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
        return int.from_bytes(
            hashlib.blake2b(repr(tuple(self)).encode(), digest_size=8).digest(), "little", signed=True
        )


class _Convolution:
    """A convolution, or one of its two gradients, as steps of the library.

    Where the library wants an array in another layout, a step copies it, on its way in or out.
    """

    def __init__(self, library: Library, call: _Call):
        """Makes the steps.

        Raises:
          RuntimeError: the library has no quick way for it.
        """
        self._library, self.size = library, 0
        self._threads = 1 if call.is_small else library.threads
        self._outside, self._inside, self._arguments = [], [], []
        with library.on(self._threads):
            self._make(call)

    def _make(self, call: _Call) -> None:
        library = self._library
        layouts = {
            "input": self._map_layout(call.input, call.dtype),
            "output": self._map_layout(call.output, call.dtype),
        }
        layouts["kernel"], kernel = self._kernel_layouts(call.kernel, call.dtype, call.groups)
        x, y = layouts["input"], layouts["output"]
        geometry = [_dims(each) for each in (call.strides, (0, 0), *zip(*call.paddings, strict=True))]
        made = self._describe("forward", _TRAINING, _DIRECT, x, kernel, None, y, *geometry)
        if call.result == "input":
            made = self._describe("backward_data", _DIRECT, x, kernel, y, *geometry, made)
        elif call.result == "kernel":
            made = self._describe("backward_weights", _DIRECT, x, kernel, None, y, *geometry, made)
        name = ctypes.c_char_p()
        library.do("dnnl_primitive_desc_query", made, _NAME_OF, 0, ctypes.byref(name))
        if (name.value or b"ref").startswith(b"ref"):
            raise RuntimeError("the library has a plain loop for it alone")

        before, arguments, after = [], {}, []
        for array in (*(array for array in _ARRAYS if array != call.result), call.result):
            is_gradient = call.result != "output" and array in (call.result, "output")
            number, question = (pair[is_gradient] for pair in _ARRAYS[array])
            layout, memory = library.layout_of(made, question), self._memory(layouts[array])
            self._outside.append(memory)
            if not library.equal(layout, layouts[array]):
                outside, memory = (layouts[array], memory), self._place_inside(layout)
                if array == call.result:
                    after.append(self._copy((layout, memory), outside))
                else:
                    before.append(self._copy(outside, (layout, memory)))
            arguments[number] = memory
        self._bytes = library.size(layouts[call.result])
        self._steps = [*before, self._step(made, arguments), *after]

    def program(self) -> ctypes.Structure:
        """Returns it as onednn.ll reads it."""
        self._arrays = (
            (Handle * len(self._outside))(*self._outside),
            (_Inside * len(self._inside))(*self._inside),
            (_Step * len(self._steps))(*self._steps),
        )
        outside, inside, steps = map(ctypes.addressof, self._arrays)
        return _Program(outside, len(self._inside), inside, len(self._steps), steps, self._bytes, self._threads)

    def _map_layout(self, shape: tuple[int, ...], dtype: str) -> Handle:
        batch, height, width, channels = shape
        steps = (height * width * channels, 1, width * channels, channels)
        return self._layout((batch, channels, height, width), steps, dtype)

    def _kernel_layouts(self, shape: tuple[int, ...], dtype: str, groups: int) -> tuple[Handle, Handle]:
        """Returns the layout of a kernel as XLA has it, and any."""
        height, width, channels, features = shape
        sizes = (groups, features // groups, channels, height, width)
        steps = (features // groups, 1, features, width * channels * features, channels * features)
        if groups == 1:
            sizes, steps = sizes[1:], steps[1:]
        arguments = len(sizes), _dims(sizes), _DTYPES[dtype], _ANY_LAYOUT
        return self._layout(sizes, steps, dtype), self._library.new("dnnl_memory_desc_create_with_tag", *arguments)

    def _layout(self, sizes: Sequence[int], steps: Sequence[int], dtype: str) -> Handle:
        arguments = len(sizes), _dims(sizes), _DTYPES[dtype], _dims(steps)
        return self._library.new("dnnl_memory_desc_create_with_strides", *arguments)

    def _describe(self, kind: str, *arguments: Any) -> Handle:
        """Returns the description of a primitive."""
        function = f"dnnl_convolution_{kind}_primitive_desc_create"
        return self._library.new(function, self._library.engine, *arguments, self._library.attributes)

    def _memory(self, layout: Handle) -> Handle:
        """Returns an array that still has no place."""
        return self._library.new("dnnl_memory_create", layout, self._library.engine, None)

    def _place_inside(self, layout: Handle) -> Handle:
        """Returns an array in the space that programs share."""
        memory = self._memory(layout)
        self._inside.append((memory, self.size))
        self.size += self._library.size(layout)
        return memory

    def _copy(self, source: tuple[Handle, Handle], target: tuple[Handle, Handle]) -> tuple:
        """Returns the step that copies an array, given as its layout and itself, into another one."""
        engine = self._library.engine
        arguments = source[0], engine, target[0], engine, self._library.attributes
        copy = self._library.new("dnnl_reorder_primitive_desc_create", *arguments)
        return self._step(copy, {_FROM: source[1], _TO: target[1]})

    def _step(self, description: Handle, arguments: dict[int, Handle]) -> tuple:
        scratchpad = self._place_inside(self._library.layout_of(description, _SCRATCHPAD_OF))
        given = (_Argument * (len(arguments) + 1))(*arguments.items(), (_SCRATCHPAD, scratchpad))
        self._arguments.append(given)
        return self._library.new("dnnl_primitive_create", description), len(given), ctypes.addressof(given)


def _dims(sizes: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * 12)(*sizes)


_MAKING = threading.Lock()


@functools.cache
def _is_served(call: _Call) -> bool:
    """Returns whether the library has a quick program for a call, which from now on is there."""
    if call.result == "kernel" and not call.has_pixels_for_all_places:
        return False
    with _MAKING:
        if library().is_full:
            return False
        try:
            library().add(call.key, _Convolution(library(), call))
        except RuntimeError:
            return False
        return True


def convolution(result: str, shape: tuple[int, ...], *operands: Array, geometry: Geometry) -> Array | None:
    """Returns a convolution, or a gradient of it, as `flaxcnn.ops.convolution` has them; None if there is none.

    Args:
      result: the array that is asked for: "input", "kernel" or "output".
      shape: its shape.
      operands: the two others, in this order, float32 or bfloat16.
      geometry: strides, paddings and groups.
    """
    dtype = operands[0].dtype
    if dtype.name not in _DTYPES or library() is None:
        return None
    others = (array for array in _ARRAYS if array != result)
    shapes = dict(zip(others, (x.shape for x in operands), strict=True)) | {result: shape}
    call = _Call(
        result, dtype.name, **shapes, strides=geometry.strides, paddings=geometry.paddings, groups=geometry.groups
    )
    if not _is_served(call):
        return None
    return jax.ffi.ffi_call(NAME, jax.ShapeDtypeStruct(shape, dtype))(*operands, key=np.int64(call.key))
