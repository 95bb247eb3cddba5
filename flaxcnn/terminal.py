"""Text for any terminal or pipe: names and messages that it can show, and output whose reader may be gone."""

import contextlib
import io
import os
import select
import signal
import sys
import unicodedata
from collections.abc import Iterable, Iterator

# Maximum number of items that a message names; further ones are counted.
MAX_NAMED = 5


def printable(name: str | os.PathLike) -> str:
    """Returns a file name, class name or message as one line that UTF-8 can encode.

    Control characters are escaped. So are bytes of a file name that are not valid UTF-8: 0xE9 becomes "\\xe9".
    """
    text = os.fspath(name)
    if text.isprintable():  # nearly always
        return text
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that is not valid UTF-8, as PEP 383 represents it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return ascii(letter)[1:-1]
    return letter


def listed(names: Iterable[str]) -> str:
    """Returns names as a printable list; only the first `MAX_NAMED` are named, and further ones are counted."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(printable(each) for each in names[:MAX_NAMED]) + more


def escape_unencodable_output() -> None:
    """Sets standard output and error to escape characters that their encoding cannot represent."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def quiet_on_closed_pipe() -> Iterator[None]:
    """Context manager that exits silently if the reader of the output has closed the pipe, as `| head` does.

    Raises:
      SystemExit: with code 141, which shells report for a process ended by SIGPIPE.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # an error at interpreter exit could not be silenced
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:  # the error concerns another pipe
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:
            os.dup2(nowhere, stream.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def _is_unread(stream: io.TextIOBase) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except io.UnsupportedOperation:  # the stream has no file descriptor
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
