"""The compiled program that `Strategy.compile` returns."""

from typing import Any

import jax


class Program:
    """A function compiled for the devices of a strategy.

    Attributes:
      compiled: the compiled function, as JAX's `lower(...).compile()` returns it.
    """

    def __init__(self, compiled: jax.stages.Compiled, *, waits: bool):
        self.compiled, self._waits = compiled, waits

    def __call__(self, *arguments: Any) -> Any:
        """Runs the program. As with other JAX functions, the results may still be being computed."""
        results = self.compiled(*arguments)
        return jax.block_until_ready(results) if self._waits else results
