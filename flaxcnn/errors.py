"""The exception for mistakes of the user, and parts of its messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error that the user can fix. Its message is one line: what is wrong, and what to write instead.

    The command line prints the message without a traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that lists the known names most similar to `name`, "; did you mean a, b?", or ""."""
    matches = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def first_line(error: BaseException, length: int = 200) -> str:
    """Returns the first line of an exception's message, cut to `length` characters, or its class name if empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:length]
