"""Cache folders for files that can be created again: downloaded weights and compiled programs."""

import os
from pathlib import Path

from flaxcnn.paths import local_path


def cache_folder(kind: str) -> Path:
    """Returns the cache folder for one kind of file, such as "compiled".

    It is a subfolder of $FLAXCNN_CACHE; if that is unset, of $XDG_CACHE_HOME/flaxcnn; if both are unset, of
    ~/.cache/flaxcnn.
    """
    if own := os.environ.get("FLAXCNN_CACHE"):
        return local_path(own) / kind
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flaxcnn" / kind
