"""State dicts in files: safetensors, and torch's .pth and .pt, read without torch and without running code."""

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
    """Reads the tensors of a weight file: safetensors, or what torch.save makes of a state dict.

    The format is told from the content. A torch file is a pickle, which is a program: here only the few
    instructions that put tensors together are known, and whatever else it calls is refused.

    Returns:
      {name: array} in the file's order, for torch's formats; dtypes as stored, bfloat16 as ml_dtypes.bfloat16.
      Arrays may be read-only views, with any strides, that share memory as the tensors did.

    Raises:
      UserError: no such file, not a weight file, damaged, or holding anything besides named tensors.
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
    # What the parsers below raise on bytes that make no sense, and zipfile on top of that.
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
        # A map, because a file's read(n) allocates n bytes first, however few are left.
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
    except (AttributeError, TypeError):  # numpy has no such type
        raise Unreadable(f"holds {name!r:.60} in a number format that is not read; save it as float32") from None
    return arrays


def _read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """Reads the format of torch 1.6 and later: a zip archive of one pickle and a record for each storage."""
    with zipfile.ZipFile(file) as archive:

        def record(name: str) -> bytes:
            info = archive.getinfo(name)
            # torch.save never compresses; a compressed record may unpack to any size.
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
    """Reads the format before torch 1.6: five pickles in a row, then each storage's length and bytes."""
    storages: dict[str, Storage] = {}
    if unpickle(content, storages) != 0x1950A86A20F9469CFC6C:
        raise Unreadable(f"is a pickle, but not one that torch.save wrote; {REMEDY}")
    unpickle(content, storages)  # the version of the format: there has been one only
    unpickle(content, storages)  # of the machine; the storages are little-endian whatever it was
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
    """Refuses, before anything is allocated, storages that the file cannot hold."""
    if sum(storage.nbytes for storage in storages.values()) > size:
        raise ValueError("it declares more data than it has")


def _named_tensors(root: Any) -> dict[str, Tensor]:
    """Returns what was pickled, if that is a dict of tensors by name and nothing else."""
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
    """Returns the view as an array, once it is seen to lie within its storage."""
    storage, offset, size, stride = tensor
    offset += storage.first
    if 0 in size:
        return np.empty(size, storage.dtype)
    if math.prod(size) > storage.numel:  # which may be a tensor of any size made of one element
        raise Unreadable(f"holds {name!r:.60} as a view that repeats elements; save its .clone()")
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= storage.numel:
        raise ValueError(f"{name!r:.60} reaches beyond its storage")
    itemsize = storage.dtype.itemsize
    strides = [step * itemsize for step in stride]
    return np.ndarray(size, storage.dtype, data[storage.key], offset * itemsize, strides)
