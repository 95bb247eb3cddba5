"""A profiler trace of a range of steps, for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

FOLDER = "profile"


class Profile:
    """A context that traces some steps of a loop into `profile/` of the work directory, or none."""

    def __init__(self, workdir: Path, steps: tuple[int, ...]):
        """Takes the first and the last step, counted from 1, or an empty tuple."""
        self._folder = workdir / FOLDER
        self._first, self._last = steps or (0, 0)
        self._active = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, carry: Any) -> None:
        """Starts the trace if the step is the first; what ran before it on the device stays out."""
        if step == self._first:
            jax.block_until_ready(carry)
            jax.profiler.start_trace(self._folder)
            self._active = True

    def after(self, step: int, carry: Any) -> bool:
        """Ends the trace if the step was the last, once the device is done; returns whether it did."""
        if step != self._last or not self._active:
            return False
        jax.block_until_ready(carry)
        self._stop()
        return True

    def _stop(self) -> None:
        if self._active:
            self._active = False
            jax.profiler.stop_trace()
