"""Suppression of what Orbax prints about damaged checkpoints, which `Checkpoints` reports in one line."""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from flaxcnn.errors import first_line


def quietly(function: Callable[[], Any]) -> tuple[Any, str]:
    """Calls a function, and suppresses what is printed to standard error if the call fails.

    For one truncated file, threads inside Orbax print thousands of lines to standard error.

    Args:
      function: function without arguments, which reads a checkpoint.

    Returns:
      (result, "") if the function succeeds, otherwise (None, reason).

    Raises:
      Exception: the function lacks a permission, or the device is out of memory. Neither is a fault of the file.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        result, failure = None, ""
        try:
            result = function()
        except PermissionError:
            raise
        except Exception as error:  # Orbax and its dependencies raise many types
            if "RESOURCE_EXHAUSTED" in str(error):  # the device is out of memory; the file may be intact
                raise
            failure = first_line(error, 100)
        finally:
            if failure:
                gc.collect()  # failed tasks print their error when they are collected
                time.sleep(0.5)  # unfinished reads print theirs when they end
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        held.seek(0)
        if not failure:
            sys.stderr.write(held.read().decode(errors="replace"))
    return result, failure


def is_news(record: Any) -> bool:
    """Returns whether a log record of Orbax tells the user anything that the run itself does not report."""
    known = (
        "did not provide metrics",
        "read_only=True",
        "directory is read only",
        "Metadata file does not exist",
        "Reached preemption sync point",
        "could not be restored. Please provide",
        "Failed to json parse Metadata file",
        "raised an exception",  # `Checkpoints` gets the exception itself
        "Handler Commit operations",
        "Save Finalize thread",
    )
    return not any(message in record.getMessage() for message in known)
