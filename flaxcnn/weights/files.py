"""Reads state dicts from safetensors files and from torch's .pth and .pt files, without torch or running code."""

import io
import math
import mmap
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flaxcnn.errors import UserError, nearest
from flaxcnn.paths import local_path
from flaxcnn.weights.pickles import REMEDY, Storage, Tensor, Unreadable, unpickle


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a weight file: a safetensors file, or a state dict written by torch.save.

    The format is detected from the content. A torch file contains a pickle, which is a program. Only the few
    instructions that assemble tensors are supported; files with any other call are refused.

    Returns:
      {name: array}, for torch's formats in the order of the file. Arrays have the stored dtypes, with
      ml_dtypes.bfloat16 for bfloat16. They may be read-only views with any strides, and share memory if the tensors
      did.

    Raises:
      UserError: the file does not exist, is damaged or not a weight file, or contains anything but named tensors.
    """
    path = local_path(path)
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except Unreadable as error:
        raise UserError(f"{path} {error}") from None
    except FileNotFoundError:
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no weight file {path}{nearest(path.name, siblings)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; name a weight file") from None
    # Errors that zipfile and the parsers below raise on invalid bytes.
    except (
        *(ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
        *(struct.error, zipfile.BadZipFile),
    ) as error:
        reason = next(iter(str(error).splitlines()), "")[:100] or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); download or save it again") from error


def _read(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    head = file.read(64)
    if head[4:9] == b"\0\0\0\0{":  # the length of a JSON header, then the header
        return _read_safetensors(path)
    if head.startswith(b"PK\3\4"):
        return _read_zip(file, path.stat().st_size)
    if head.startswith(b"\x80"):
        # Mapped into memory, because `read(n)` of a file allocates n bytes first, even if fewer are left.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_legacy(content)
    if head.startswith(b"version https://git-lfs"):
        raise Unreadable("is a git-lfs pointer, not the weights it stands for; run git lfs pull")
    if head.lstrip().startswith(b"<"):
        raise Unreadable("is a web page, not a weight file; download the file itself")
    raise Unreadable("is not a weight file: neither safetensors nor written by torch.save")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    arrays, name = {}, ""
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                arrays[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(error) from error
    except (AttributeError, TypeError):  # NumPy has no such dtype
        raise Unreadable(f"holds {name!r:.60} in a number format that is not read; save it as float32") from None
    return arrays


def _read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """Reads the format of torch 1.6 and later: a zip archive with one pickle and one record per storage."""
    with zipfile.ZipFile(file) as archive:

        def record(name: str) -> bytes:
            info = archive.getinfo(name)
            # torch.save never compresses, and a compressed record could expand to any size.
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size > size:
                raise ValueError(f"record {name!r:.60} is not stored as torch.save does")
            return archive.read(info)

        pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise Unreadable(f"is a zip archive, but not one that torch.save wrote; {REMEDY}")
        prefix = pickles[0].removesuffix("data.pkl")
        storages: dict[str, Storage] = {}
        tensors = _named_tensors(unpickle(io.BytesIO(record(pickles[0])), storages))
        _check_total(storages, size)
        byteorder = f"{prefix}byteorder"
        swap = byteorder in archive.namelist() and record(byteorder) == b"big"
        data = {}
        for key, storage in storages.items():
            content = record(f"{prefix}data/{key}")
            if len(content) != storage.nbytes:
                raise ValueError(f"storage {key!r:.40} has {len(content)} bytes instead of {storage.nbytes}")
            if swap:
                content = np.frombuffer(content, f"u{storage.dtype.itemsize}").byteswap().tobytes()
            data[key] = content
    return {name: _array(name, tensor, data) for name, tensor in tensors.items()}


def _read_legacy(content: mmap.mmap) -> dict[str, np.ndarray]:
    """Reads the format before torch 1.6: five pickles one after another, then each storage's length and bytes."""
    storages: dict[str, Storage] = {}
    if unpickle(content, storages) != 0x1950A86A20F9469CFC6C:
        raise Unreadable(f"is a pickle, but not one that torch.save wrote; {REMEDY}")
    unpickle(content, storages)  # the version of the format; there is only one
    unpickle(content, storages)  # properties of the machine, not needed: storages are always little-endian
    tensors = _named_tensors(unpickle(content, storages))
    _check_total(storages, len(content))
    data = {}
    for key in unpickle(content, storages):
        if not isinstance(key, str):
            raise ValueError("a storage's key is no string")
        (length,) = struct.unpack("<q", content.read(8))
        if length != storages[key].numel:
            raise ValueError(f"storage {key!r:.40} has {length} elements instead of {storages[key].numel}")
        data[key] = content.read(storages[key].nbytes)
        if len(data[key]) != storages[key].nbytes:
            raise ValueError(f"it ends within storage {key!r:.40}")
    return {name: _array(name, tensor, data) for name, tensor in tensors.items()}


def _check_total(storages: dict[str, Storage], size: int) -> None:
    """Raises ValueError if the storages are larger than the file, before anything is allocated."""
    if sum(storage.nbytes for storage in storages.values()) > size:
        raise ValueError("it declares more data than it has")


def _named_tensors(root: Any) -> dict[str, Tensor]:
    """Returns the pickled object if it is a dict from names to tensors; otherwise raises `Unreadable`."""
    if not isinstance(root, dict):
        what = "a single tensor" if isinstance(root, Tensor) else f"a {type(root).__name__}"
        raise Unreadable(f"holds {what} instead of a state dict; {REMEDY}")
    for key, value in root.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            nested = [f"{key!r:.40}" for key, value in root.items() if isinstance(value, dict)]
            remedy = f"save its {' or '.join(nested[:3])} alone, with torch.save" if nested else REMEDY
            raise Unreadable(f"holds {key!r:.60} of type {type(value).__name__}, which is no tensor; {remedy}")
    if not root:
        raise Unreadable(f"holds no tensors; {REMEDY}")
    return root


def _array(name: str, tensor: Tensor, data: dict[str, bytes]) -> np.ndarray:
    """Returns a tensor as an array; raises if the tensor exceeds its storage or repeats elements."""
    storage, offset, size, stride = tensor
    offset += storage.first
    if 0 in size:
        return np.empty(size, storage.dtype)
    if math.prod(size) > storage.numel:  # strides of 0 could make one element a tensor of any size
        raise Unreadable(f"holds {name!r:.60} as a view that repeats elements; save its .clone()")
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= storage.numel:
        raise ValueError(f"{name!r:.60} reaches beyond its storage")
    itemsize = storage.dtype.itemsize
    strides = [step * itemsize for step in stride]
    return np.ndarray(size, storage.dtype, data[storage.key], offset * itemsize, strides)
