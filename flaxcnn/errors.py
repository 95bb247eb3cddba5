"""The exception for mistakes that the user can mend, text that is fit to print, and output that nobody reads."""

import contextlib
import difflib
import io
import os
import select
import signal
import sys
import unicodedata
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """A mistake the user can mend; the message is one line: what was wrong, what to write instead.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint of the known names closest to a mistyped one: "; did you mean a, b?", or ""."""
    matches = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def first_line(error: BaseException, length: int = 200) -> str:
    """Returns the first line of what an exception says, cut to a length, or its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:length]


def printable(name: str | os.PathLike) -> str:
    """Returns the name of a file or a class, or a message, as one line that UTF-8 can encode.

    Control characters become escapes, as do the bytes of a name that are not UTF-8: a lone 0xE9 becomes "\\xe9".
    """
    text = os.fspath(name)
    if text.isprintable():  # nearly always
        return text
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte, by PEP 383
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return ascii(letter)[1:-1]
    return letter


def escape_unencodable_output() -> None:
    """Has standard output and error escape what their encoding lacks, such as names in another script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def quiet_on_closed_pipe() -> Iterator[None]:
    """A block that, once nobody reads the output any more, as after `| head`, ends without a word, by code 141.

    Raises:
      SystemExit: with the shell's code of a process that a closed pipe has ended.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, because what fails when the interpreter exits is printed
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:  # some other pipe
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:
            os.dup2(nowhere, stream.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def _is_unread(stream: io.TextIOBase) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except io.UnsupportedOperation:  # no file behind it
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
