"""Where files are kept that can be had again: downloaded weights, compiled programs."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Returns the folder of a kind of file: under $FLAXCNN_CACHE, $XDG_CACHE_HOME/flaxcnn or ~/.cache/flaxcnn."""
    if own := os.environ.get("FLAXCNN_CACHE"):
        return Path(own).expanduser() / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flaxcnn" / kind
