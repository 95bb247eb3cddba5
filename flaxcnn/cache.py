"""Where files are kept that can be had again: downloaded weights, compiled programs."""

import os
from pathlib import Path

from flaxcnn.paths import local_path


def cache_folder(kind: str) -> Path:
    """Returns the folder of a kind of file: under $FLAXCNN_CACHE, $XDG_CACHE_HOME/flaxcnn or ~/.cache/flaxcnn."""
    if own := os.environ.get("FLAXCNN_CACHE"):
        return local_path(own) / kind
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flaxcnn" / kind
