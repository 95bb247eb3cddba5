"""Reads state dicts from safetensors files and from torch's .pth and .pt files, without torch or running code."""

import mmap
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flaxcnn.errors import UserError, nearest
from flaxcnn.paths import local_path
from flaxcnn.weights.pickles import Unreadable
from flaxcnn.weights.torch_files import read_legacy, read_zip


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
        return read_zip(file, path.stat().st_size)
    if head.startswith(b"\x80"):
        # Mapped into memory, because `read(n)` of a file allocates n bytes first, even if fewer are left.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return read_legacy(content)
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
