"""Paths given by the user: `~` is expanded, and addresses such as gs://bucket/run are refused."""

import os
import re
from pathlib import Path

from flaxcnn.errors import UserError

# Addresses such as gs://bucket or file://run; also gs:/bucket, to which pathlib shortens gs://bucket. The scheme
# has at least two letters.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/|$)")


def local_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder on this machine, with `~` and `~user` expanded.

    Raises:
      UserError: the text is an address, such as gs://bucket/run.
    """
    text = os.fspath(text)
    if _ADDRESS.match(text):
        raise UserError(
            f"{text} is an address; only files and folders of this machine can be used: write a path such as "
            f"/data/run, and mount what lies in a bucket"
        )
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises on unknown users
