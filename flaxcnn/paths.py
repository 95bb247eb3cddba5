"""Paths as users write them: `~` is the home directory, and addresses such as gs://bucket/run are refused."""

import os
import re
from pathlib import Path

from flaxcnn.errors import UserError

# gs://, s3://, file://; also gs:/, to which pathlib shortens the first. A scheme has two letters or more.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/|$)")


def local_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder on this machine, `~` and `~user` expanded.

    Raises:
      UserError: it is an address, such as gs://bucket/run.
    """
    text = os.fspath(text)
    if _ADDRESS.match(text):
        raise UserError(
            f"{text} is an address; only files and folders of this machine can be used: write a path such as "
            f"/data/run, and mount what lies in a bucket"
        )
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises on unknown users
