"""The leaves of a configuration: dotted paths, plain dictionaries, and differences between two configurations."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flaxcnn.config.schema import TrainConfig
from flaxcnn.errors import UserError, nearest


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


def get_leaf(config: Any, path: str) -> Any:
    """Returns the value at a dotted path, such as "schedule.milestones[0]"."""
    for part in path.replace("]", "").replace("[", ".").split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yields the dotted path, the dataclass field and the value of each leaf.

    Raises:
      UserError: a section, such as `optimizer`, is not an instance of its dataclass.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            if not isinstance(value, field.type):
                raise UserError(f"{prefix}{field.name} takes a {field.type.__name__}, got {value!r}")
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, value


def leaf_paths(config: Any) -> list[str]:
    """Returns the dotted paths of all leaves."""
    return [path for path, _, _ in leaves(config)]


def leaf_type(config: Any, path: str) -> Any:
    """Returns the declared type of the leaf at a dotted path, or None if there is no such leaf."""
    return next((field.type for leaf, field, _ in leaves(config) if leaf == path), None)


def is_within_leaf(config: Any, path: str) -> bool:
    """Returns whether a path is a key within a leaf with free keys, such as "model.options.norm"."""
    return any(field.type is ConfigDict and path.startswith(f"{leaf}.") for leaf, field, _ in leaves(config))


def leaf_meaning(config: Any, path: str) -> str:
    """Returns the meaning of the leaf at a dotted path, followed by its allowed values in parentheses."""
    metadata = next(field.metadata for leaf, field, _ in leaves(config) if leaf == path)
    choices = f" ({', '.join(metadata['choices'])})" if metadata["choices"] else ""
    return metadata["meaning"] + choices


def type_name(annotation: Any) -> str:
    """Returns the name of a type for an error message, such as "a whole number"."""
    if isinstance(annotation, types.UnionType):
        return " or ".join(type_name(kind) for kind in typing.get_args(annotation) if kind is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return f"a tuple of {type_name(typing.get_args(annotation)[0])}"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(annotation) or annotation.__name__


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Converts a configuration to plain dictionaries, lists, strings and numbers, ready for JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, ConfigDict):
            return value.to_dict()
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def from_dict(values: Mapping[str, Any], kind: type = TrainConfig) -> Any:
    """Converts the result of `to_dict` back to a configuration. Missing leaves get their defaults.

    Args:
      values: result of `to_dict`, possibly read from JSON.
      kind: dataclass to create.

    Raises:
      UserError: the dataclass does not have one of the keys.
    """
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if unknown := [key for key in values if key not in fields]:
        raise UserError(f"unknown configuration key {unknown[0]!r}{nearest(unknown[0], fields)}")

    def rebuilt(annotation: Any, value: Any) -> Any:
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return from_dict(value, annotation)
        if annotation is ConfigDict:
            return ConfigDict(value)
        return tuple(value) if isinstance(value, list) else value

    return kind(**{key: rebuilt(fields[key], value) for key, value in values.items()})
