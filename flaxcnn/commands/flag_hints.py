"""One-line error messages of `train` for unknown flags and keys, with similar names, and for invalid values."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from flaxcnn.config import TrainConfig
from flaxcnn.config.leaves import is_within_leaf, leaf_paths, leaf_type, type_name
from flaxcnn.errors import UserError

_NAMED = 4  # maximum number of keys in a hint


def check_keys(keys: Iterable[str], config: TrainConfig) -> None:
    """Checks that the configuration has all `keys`.

    Raises:
      UserError: the configuration lacks a key. The message names the first such key, and similar ones.
    """
    known = leaf_paths(config)
    for key in keys:
        if key not in known and not is_within_leaf(config, key):
            raise UserError(f"unknown configuration key {key!r}{_among(_like(key, known))} (--help lists all)")


def unknown_flag(name: str, flags: Sequence[str], config: TrainConfig) -> str:
    """Returns the error message for a flag that is neither in `flags` nor a key of the configuration."""
    return f"unknown flag --{name}{_flag_hint(name, flags, config)} (--help lists all)"


def unexpected_argument(argument: str, flags: Sequence[str], config: TrainConfig) -> str:
    """Returns the error message for an argument that is not a flag."""
    name, equals, _ = argument.partition("=")
    hint = _flag_hint(name.removeprefix("config."), flags, config) if equals else ""
    return f"unexpected argument {argument!r}{hint or '; flags are written --name=value'}"


def explain(message: str, overrides: Mapping[str, str | bool | None], config: TrainConfig) -> str:
    """Rewrites absl's error message about a value that it cannot parse.

    Args:
      message: message of absl's exception.
      overrides: {key: value} from the command line.
      config: configuration with the types of the keys.
    """
    for key, value in overrides.items():
        if message.startswith(f"flag --config.{key}={value}:") and leaf_type(config, key):
            return f"{key} takes {type_name(leaf_type(config, key))}, got {value!r}"
    return next(iter(message.strip().splitlines()), "the command line cannot be read")


def _flag_hint(name: str, flags: Sequence[str], config: TrainConfig) -> str:
    """Returns a hint that lists the flags with names similar to `name`, or ""."""
    found = [f"--{flag}" for flag in difflib.get_close_matches(_snake(name), flags, n=1, cutoff=0.8)]
    keys = [_snake(name)] if is_within_leaf(config, _snake(name)) else _like(name, leaf_paths(config))
    return _among(found or [f"--config.{key}" for key in keys])


def _like(name: str, known: list[str]) -> list[str]:
    """Returns the keys that end in `name` or lie below it, or of which it is an abbreviation or a misspelling."""
    name = _snake(name)
    section, _, last = name.rpartition(".")
    tails = {key: key.split(".")[-1] for key in known}
    found = [key for key in known if f".{key}".endswith(f".{name}")]
    found = found or [key for key in known if key.startswith(f"{name}.")]
    found = found or [key for key, tail in tails.items() if tail == last]
    if not found and len(last) > 1:  # lr, bs, wd
        found = [key for key, tail in tails.items() if "".join(word[0] for word in tail.split("_")) == last]
        found = [key for key in found if key.startswith(section)] or found
    if not found and re.search("(epoch|step|iteration)s?$", last):
        found = ["duration"]
    found = found or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = difflib.get_close_matches(last, tails.values(), n=1, cutoff=0.6)
    return found or [key for key, tail in tails.items() if tail in near]


def _among(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"; did you mean {', '.join(names[:_NAMED])}{more}?" if names else ""


def _snake(name: str) -> str:
    return name.replace("-", "_")
