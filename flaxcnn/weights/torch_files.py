"""Reads the tensors of files that torch.save wrote, in the format of today and the one before torch 1.6."""

import io
import math
import mmap
import re
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np

from flaxcnn.weights.pickles import REMEDY, Storage, Tensor, Unreadable, unpickle


def read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
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


def read_legacy(content: mmap.mmap) -> dict[str, np.ndarray]:
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
