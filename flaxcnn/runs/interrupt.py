"""Graceful stop on a signal: the training loop finishes its step, saves a checkpoint, and ends."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Context manager that records the first SIGINT or SIGTERM; a second signal has its usual effect.

    With several processes, a SIGTERM to any of them stops all processes after the same step, through JAX's
    preemption service, and SIGINT has its usual effect.
    """

    def __init__(self):
        self._received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        # Python sets signal handlers only in the main thread; in other threads signals keep their usual effect.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def after(self, steps: range) -> signal.Signals | None:
        """Returns the signal that asks the training loop to stop, or None.

        Args:
          steps: the steps since the previous call. Each step must be passed exactly once.
        """
        if jax.process_count() > 1:
            # A list, not a generator: every process must ask for every step.
            reached = [multihost_utils.reached_preemption_sync_point(step) for step in steps]
            if any(reached):
                return signal.SIGTERM
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
