"""Removing what a preparation that fails or is killed has written to the folder of prepared datasets."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from flaxcnn.errors import UserError


@contextlib.contextmanager
def removed_on_failure(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Context manager that removes what its block wrote for a dataset, and empty folders, if the block fails."""
    root, own = Path(builder.data_dir_root), Path(builder.data_path).parent
    downloads = root / "downloads"
    made = [folder for folder in (root, *root.parents) if not folder.exists()]

    def present() -> set[Path]:
        return {*own.glob("*"), *downloads.glob(builder.name)}

    before = present()
    try:
        yield
    except BaseException:
        for path in present() - before:
            shutil.rmtree(path, ignore_errors=True)
        for folder in (own, downloads / "extracted", downloads, *made):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty
        raise


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Context manager that locks the folder of a dataset, and removes what a killed process has left in it.

    Raises:
      UserError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {folder}; wait for it") from None
        except OSError:  # the file system has no locks: files in the folder may be in use
            pass
        else:
            for remains in folder.glob(f"{constants.INCOMPLETE_PREFIX}*"):
                shutil.rmtree(remains)
        yield
    finally:
        os.close(descriptor)
