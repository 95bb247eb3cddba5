"""Reads the pickles that torch.save writes, without running arbitrary code.

A pickle is a program for a small stack machine. Python's `pickle` lets such a program import and call anything. The
interpreter in this module supports only the instructions that a state dict needs: it imports nothing, sets no
attributes, and calls only the functions in `_GLOBALS`.
"""

import pickletools
import types
from collections.abc import Sequence
from typing import IO, Any, NamedTuple, Protocol, cast

import ml_dtypes
import numpy as np

REMEDY = "save the tensors alone: torch.save(model.state_dict(), path)"


class Unreadable(Exception):
    """A weight file cannot be read. The message completes a sentence that starts with the path of the file."""


class Storage(NamedTuple):
    """A one-dimensional array of numbers in the file, of which tensors are views.

    Attributes:
      key: name of the array in the file.
      dtype: dtype of the numbers.
      numel: number of elements.
      first: index of the element from which the offsets of tensors count.
    """

    key: str
    dtype: np.dtype
    numel: int
    first: int = 0

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.numel * self.dtype.itemsize


class Tensor(NamedTuple):
    """A view of a storage, not yet checked to lie within it.

    Attributes:
      storage: array that holds the elements.
      offset: offset of the first element, 0 or more.
      size: shape of the tensor.
      stride: distance between neighbors along each axis, in elements, 0 or more.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Stream(Protocol):
    """A file to read a pickle from; `read(n)` must not allocate n bytes if fewer are left."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102

    def readline(self) -> bytes: ...  # noqa: D102


def unpickle(stream: Stream, storages: dict[str, Storage]) -> Any:
    """Reads one pickle and leaves the stream positioned after it.

    Args:
      stream: stream, positioned at the start of the pickle.
      storages: dict to which the storages that the pickle refers to are added, by key.

    Returns:
      The pickled object: dicts, lists, tuples, numbers, strings and `Tensor`s.

    Raises:
      Unreadable: the pickle contains an instruction or call that a state dict does not need.
      Exception: ValueError, IndexError or another error, if the bytes are invalid.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _PUSHED:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(pop_to_mark())
            case "APPEND":
                item = stack.pop()
                list.append(cast(list, stack[-1]), item)
            case "APPENDS":
                items = pop_to_mark()
                list.extend(cast(list, stack[-1]), items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_set_items({}, pop_to_mark()))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = pop_to_mark()
                _set_items(stack[-1], items)
            case "GLOBAL":
                stack.append(_find_global(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_find_global(" ".join((module, name))))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, types.FunctionType):
                    raise ValueError("it calls what is no function")
                stack.append(function(*arguments))
            case "BUILD":  # sets attributes of an OrderedDict; `_metadata` of a state dict is ignored
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise Unreadable(f"would set attributes of what is no dict; it is refused; {REMEDY}")
            case "BINPERSID":
                stack.append(_find_storage(stack.pop(), storages))
            case "STOP":
                return stack.pop()
            case "INST":
                raise _refusal(argument)
            case name:
                raise Unreadable(f"uses the pickle instruction {name}; it is refused; {REMEDY}")
    raise ValueError("a pickle does not end")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    )
)


def _set_items(target: dict, items: list) -> dict:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Other keys are refused: nested tuples of one tuple twice take exponential time to hash and to print.
        if not isinstance(target, dict) or not isinstance(key, str | int):
            raise ValueError("a dict is ill-formed")
        target[key] = value
    return target


def _ordered_dict(pairs: Sequence = ()) -> dict:  # pickles of Python 2 pass the items, those of Python 3 set them
    return _set_items({}, [part for key, value in pairs for part in (key, value)])


def _rebuild_tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or not len(size) == len(stride) <= 64:
        raise ValueError("a tensor is ill-formed")
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in (offset, *size, *stride)):
        raise ValueError("a tensor has an impossible size")
    return Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


# All globals that a pickle may use, by "module name", with what replaces them here.
_GLOBALS = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch DoubleStorage": np.dtype(np.float64),
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}


def _find_global(name: str) -> Any:
    if name not in _GLOBALS:
        raise _refusal(name)
    return _GLOBALS[name]


def _refusal(name: str) -> Unreadable:
    dotted = repr(name.replace(" ", ".", 1)[:80])[1:-1]  # repr escapes newlines and other special characters
    return Unreadable(f"would run {dotted}; it is refused; {REMEDY}")


def _find_storage(identity: tuple, storages: dict[str, Storage]) -> Storage:
    kind, dtype, key, _device, numel, *view = identity
    if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
        raise ValueError("a storage is ill-formed")
    first, length = view[0][1:] if any(view) else (0, numel)  # in old files, a storage may be part of another
    if not all(isinstance(number, int) and number >= 0 for number in (numel, first, length)):
        raise ValueError("a storage has an impossible size")
    if first + length > numel:
        raise ValueError("a storage reaches beyond the one it is part of")
    whole = Storage(key, dtype, numel)
    if storages.setdefault(key, whole) != whole:
        raise ValueError("a storage is declared twice, differently")
    return whole._replace(first=first)
