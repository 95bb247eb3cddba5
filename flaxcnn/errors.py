"""The one exception for mistakes that the user can mend, and text that is fit to print."""

import difflib
import io
import sys
import unicodedata
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend; the message is one line: what was wrong, what to write instead.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint of the known names closest to a mistyped one: "; did you mean a, b?", or ""."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def first_line(error: BaseException, length: int = 200) -> str:
    """Returns the first line of what an exception says, cut to a length, or its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:length]


def printable(text: str) -> str:
    """Returns text on one line that any UTF-8 file or screen takes: control characters and stray bytes escaped."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in text
    )


def escape_unencodable_output() -> None:
    """Has standard output and error escape what their encoding lacks, such as names in another script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
