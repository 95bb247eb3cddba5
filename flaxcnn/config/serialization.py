"""Conversion of a configuration to plain dictionaries, as in JSON, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.config.schema import TrainConfig
from flaxcnn.errors import UserError, nearest


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
