"""Differences between two configurations, and whether they are configurations of the same experiment."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxcnn.config.leaves import leaves
from flaxcnn.config.schema import TrainConfig


class Change(NamedTuple):
    """A leaf, or a key within a leaf, that differs between two configurations.

    Attributes:
      path: dotted path of the leaf or key.
      before: value in the first configuration; None if the key is missing there.
      now: value in the second configuration; None if the key is missing there.
      is_identity: whether the change makes the second configuration another experiment, so that it cannot continue
        the run of the first.
    """

    path: str
    before: Any
    now: Any
    is_identity: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.before!r} -> {self.now!r}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Returns the differences between two results of `to_dict`, both with lists instead of tuples, as in JSON."""
    fields = {path: field for path, field, _ in leaves(TrainConfig())}
    then, present = _flatten(before), _flatten(now)
    found = []
    for path in sorted(then.keys() | present.keys()):
        old, new = then.get(path), present.get(path)
        if old != new:
            leaf = next((leaf for leaf in fields if path == leaf or path.startswith(f"{leaf}.")), None)
            identity = fields[leaf].metadata["identity"] if leaf else True
            if not isinstance(identity, bool):
                identity = identity(path.removeprefix(f"{leaf}."), old, new)
            found.append(Change(path, old, new, identity))
    return found


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
