"""The leaves of a configuration and their dotted paths."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.errors import UserError


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
