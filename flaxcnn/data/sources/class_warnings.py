"""Warnings about classes that only one split has, which often have a misspelled name."""

import collections
import difflib
import unicodedata
from collections.abc import Iterator, Mapping

from flaxcnn.data.sources.folder_messages import MAX_NAMED
from flaxcnn.data.sources.folder_scan import Files
from flaxcnn.terminal import listed, printable

# The time to find misspelled names grows with the square of their number. If more than this many classes are in one
# split only, or there are more than ten times as many in all, only names that differ in case, spaces and the like
# are found.
_MAX_COMPARED = 100


def class_warnings(splits: Mapping[str, Files]) -> Iterator[str]:
    """Yields warnings about classes that only one split has. One warning names each pair of similar names."""
    where: dict[str, set[str]] = collections.defaultdict(set)
    for split, files in splits.items():
        for name, _ in files:
            where[name].add(split)
    single = sorted(name for name, found in where.items() if len(found) == 1)
    if len(splits) < 2 or not single:
        return
    pairs = _similar_pairs(single, where)
    for one, other in pairs[:MAX_NAMED]:
        yield (
            f"warning: class {_quoted(one, other)} is only in {listed(sorted(where[one]))}, "
            f"{_quoted(other, one)} in {listed(sorted(where[other]))}: is one of them misspelled?"
        )
    if pairs[MAX_NAMED:]:
        yield f"warning: the same for {len(pairs) - MAX_NAMED:,} more pairs of classes"
    told = {name for pair in pairs for name in pair}
    for split in splits:
        if alone := [name for name in single if where[name] == {split} and name not in told]:
            what = "class" if len(alone) == 1 else "classes"
            yield f"warning: {what} only in {printable(split)}: {listed(alone)}"


def _similar_pairs(single: list[str], where: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Returns pairs (class that only one split has, class of other splits with a similar name)."""
    by_plain: dict[str, list[str]] = collections.defaultdict(list)
    for name in where:
        by_plain[_plain(name)].append(name)
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for name in single:
        near = by_plain[_plain(name)]
        if len(near) == 1 and len(single) <= _MAX_COMPARED and len(where) <= 10 * _MAX_COMPARED:
            matches = difflib.get_close_matches(_plain(name), by_plain, 3, 0.75)
            near = [each for match in matches for each in by_plain[match]]
        others = [each for each in near if not where[each] & where[name]]
        if others:
            pairs.setdefault(frozenset((name, others[0])), (name, others[0]))
    return list(pairs.values())


def _plain(name: str) -> str:
    """Returns a name without case, Unicode variants, spaces, hyphens and underscores, to find similar names."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter not in " _-")


def _quoted(name: str, other: str) -> str:
    """Returns a name in quotes, with escaped code points if `name` and `other` look alike."""
    alike = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    return ascii(name) if alike else f"'{printable(name)}'"
