"""Durations as text: a number of epochs or steps, such as "10 epochs", "0.5 epochs" or "400 steps"."""

import functools
import math

from flaxcnn.errors import UserError


@functools.cache  # the training loop calls it at every step
def to_steps(duration: str, steps_per_epoch: int) -> int:
    """Converts a duration to a number of steps. A fraction of a step is rounded up.

    Raises:
      UserError: the text is not a duration.
    """
    amount, in_epochs = parse_duration(duration)
    # Rounded first, because 0.1 * 30 is slightly more than 3 in floating point.
    return math.ceil(round(amount * steps_per_epoch, 6)) if in_epochs else int(amount)


def parse_duration(duration: str) -> tuple[float, bool]:
    """Parses a duration.

    Returns:
      (number, in_epochs), where `in_epochs` is True for epochs and False for steps.

    Raises:
      UserError: the text is not a duration.
    """
    amount, _, unit = duration.strip().partition(" ")
    try:
        number = float(amount)
        if unit.rstrip("s") not in ("epoch", "step") or not 0 <= number < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(f'{duration!r} is not a duration; write "10 epochs" or "400 steps"') from None
    if unit.startswith("step") and number != int(number):
        raise UserError(f"{duration!r} is not a whole number of steps")
    return number, unit.startswith("epoch")
