"""Messages about images that were left out because they cannot be read."""

from collections.abc import Iterable, Sequence

# Maximum number of images that a message names; further ones are counted.
NAMED = 20


def left_out(count: int, named: Sequence[str]) -> Iterable[str]:
    """Yields the lines of a message about images that were left out.

    Args:
      count: number of images left out; 0 yields no line.
      named: path and reason, as one line each, of some of these images.
    """
    if count:
        yield f"left out, because they cannot be read: {count:,}"
        yield from (f"  {line}" for line in named)
        if count > len(named):
            yield f"  and {count - len(named):,} more"
