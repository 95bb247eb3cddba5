"""A profiler trace of a range of steps, for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

PROFILES = "profile"


class Profiler:
    """Context manager that writes a profiler trace of a range of steps to `profile/` in the work directory."""

    def __init__(self, workdir: Path, steps: tuple[int, ...]):
        """Prepares the trace.

        Args:
          workdir: the work directory.
          steps: first and last step of the trace, counted from 1; empty for no trace.
        """
        self._folder = workdir / PROFILES
        self._first, self._last = steps or (0, 0)
        self._active = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, results: Any) -> None:
        """Starts the trace if `step` is its first step, once the device has finished the previous steps.

        Args:
          step: the step that comes next.
          results: arrays that the previous step computes.
        """
        if step == self._first:
            jax.block_until_ready(results)
            jax.profiler.start_trace(self._folder)
            self._active = True

    def after(self, step: int, results: Any) -> bool:
        """Ends the trace if `step` is its last step, once the device has finished that step.

        Args:
          step: the step just taken.
          results: arrays that it computes.

        Returns:
          Whether the trace was ended.
        """
        if step != self._last or not self._active:
            return False
        jax.block_until_ready(results)
        self._stop()
        return True

    def _stop(self) -> None:
        if self._active:
            self._active = False
            jax.profiler.stop_trace()
