"""The flags of `train`: `--config=RECIPE`, `--config.KEY=VALUE` for every key, `--workdir` and others."""

import dataclasses
import re
import types
from collections.abc import Iterable
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flaxcnn.commands import flag_hints
from flaxcnn.commands.train_help import usage
from flaxcnn.config import TrainConfig
from flaxcnn.config.leaves import get_leaf, leaf_type, type_name
from flaxcnn.config.recipes import find_recipe, load_config, recipe_name
from flaxcnn.errors import UserError, first_line
from flaxcnn.paths import local_path

# All flags except --config.KEY.
FLAGS = ("config", "workdir", "coordinator", "num_processes", "process_id")
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line of `train`.

    Attributes:
      config: configuration of the recipe, with the overrides of the command line applied.
      workdir: work directory, either new or of a run to continue.
      coordinator: how this process connects to the others, see `flaxcnn.parallel.processes.initialize`.
      num_processes: number of processes if the coordinator is HOST:PORT, otherwise None.
      process_id: index of this process if the coordinator is HOST:PORT, otherwise None.
    """

    config: TrainConfig
    workdir: Path
    coordinator: str
    num_processes: int | None
    process_id: int | None


def parse(argv: list[str], default: Path) -> Command:
    """Parses a command line.

    Args:
      argv: name of the program in usage messages, followed by the arguments.
      default: file path of the recipe to use if the command line names none.

    Raises:
      UserError: a flag or key is unknown, a value has the wrong type, or the recipe is missing or raises an error.
      SystemExit: --help was given, and the help has been printed.
    """
    argv = [argv[0], *_from_files(argv[1:])]
    recipe = _last_config(argv)
    path = default if recipe is None else find_recipe(recipe)
    config = load_config(path)
    workdir = f"runs/{recipe_name(path).replace('/', '_')}"
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(usage(argv[0], path, config, default=recipe_name(default), workdir=workdir))
        raise SystemExit(0)
    overrides, others = _take_overrides(argv[1:], config)
    flag_hints.check_keys(overrides, config)
    # absl cannot set a key to None, so these keys are set after parsing.
    unset = [key for key, value in overrides.items() if _unsets(value, leaf_type(config, key))]
    argv = [argv[0], *(_written(*each) for each in overrides.items() if each[0] not in unset), *others]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=values, sys_argv=argv, accept_new_attributes=True
        )
        flags.DEFINE_string("workdir", workdir, "", flag_values=values)
        flags.DEFINE_string("coordinator", "auto", "", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "", flag_values=values)
        flags.DEFINE_integer("process_id", None, "", flag_values=values)
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(flag_hints.unknown_flag(error.flagname, FLAGS, config)) from None
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(flag_hints.explain(str(error), overrides, config)) from None
    if len(rest) > 1:
        raise UserError(flag_hints.unexpected_argument(rest[1], FLAGS, config))
    if not values.workdir:
        raise UserError("--workdir is empty; name a folder")
    for key in unset:
        section, _, field = key.rpartition(".")
        setattr(get_leaf(values.config, section) if section else values.config, field, None)
    return Command(
        config=values.config,
        workdir=local_path(values.workdir),
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )


def _from_files(argv: list[str]) -> list[str]:
    """Replaces each --flagfile in a command line by the flags in that file."""
    try:
        return flags.FlagValues().read_flags_from_files(argv)
    except (flags.Error, OSError) as error:
        raise UserError(first_line(error)) from None


def _last_config(argv: list[str]) -> str | None:
    """Returns the value of the last --config, which overrides earlier ones; None if there is none."""
    recipe = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument in ("--config", "-config"):
            recipe = following or ""
        elif match := re.match(r"--?config=(.*)", argument):
            recipe = match[1]
    if recipe == "":
        raise UserError("--config is empty; name a recipe, such as --config=fashion_mnist/lenet5")
    return recipe


def _take_overrides(
    arguments: Iterable[str], config: TrainConfig
) -> tuple[dict[str, str | bool | None], list[str]]:
    """Separates the overrides (`--config.KEY=VALUE`) in a command line from the other arguments.

    An override replaces earlier ones of the same key and of keys within it.

    Returns:
      (overrides, others). `overrides` holds the value of each key: the text; True for `--config.KEY` and False for
      `--noconfig.KEY`; None if the value is missing. `others` are the remaining arguments, without --config.
    """
    overrides: dict[str, str | bool | None] = {}
    others, coming = [], iter(arguments)
    for argument in coming:
        if argument == "--":
            others += [argument, *coming]
        elif argument in ("--config", "-config"):
            next(coming, None)
        elif match := _OVERRIDE.fullmatch(argument):
            negated, path, value = match.groups()
            if negated and leaf_type(config, path) not in (bool, None):
                kind = type_name(leaf_type(config, path))
                raise UserError(f"{path} takes {kind}; --noconfig.{path} is for keys that are true or false")
            if value is None and leaf_type(config, path) in (bool, None):  # None: a network field
                value = not negated
            elif value is None:
                value = next(coming, None)
            replaced = [key for key in overrides if key == path or key.startswith(f"{path}.")]
            for key in replaced:
                del overrides[key]
            overrides[path] = value
        elif not re.match("--?config=", argument):
            others.append(argument)
    return overrides, others


def _written(key: str, value: str | bool | None) -> str:
    """Formats an override as a flag for absl."""
    if isinstance(value, str):
        return f"--config.{key}={value}"
    return f"--noconfig.{key}" if value is False else f"--config.{key}"


def _unsets(value: str | bool | None, kind: object) -> bool:
    """Returns whether a value means None, for a key whose type allows None."""
    return value in ("None", "none") and isinstance(kind, types.UnionType)
