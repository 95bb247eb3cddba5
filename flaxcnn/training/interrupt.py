"""A request to stop, by a signal: the loop finishes its step, saves, and leaves."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """A context in which the first SIGINT or SIGTERM is only noted; the second acts as always.

    With several processes, SIGTERM to any of them is a notice to all, which JAX's preemption service hands on: it
    has all of them stop after the same step. SIGINT acts as always there.
    """

    def __init__(self):
        self._received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        # Python lets only the main thread handle signals; elsewhere they act as always.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def after(self, steps: range) -> signal.Signals | None:
        """Returns the signal that asks the loop to leave after these steps, or None; ask once for each step."""
        if jax.process_count() > 1:
            # All are asked for, because each process must ask as often as the others.
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
