"""The command line of a training script: `--config=FILE`, an override for every leaf of it, and `--workdir`."""

import dataclasses
import difflib
import importlib.util
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flaxcnn.config import TrainConfig, get_leaf, leaf_meaning, leaf_paths, leaf_type, type_name
from flaxcnn.errors import UserError, first_line
from flaxcnn.paths import local_path


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command line asks for.

    Attributes:
      config: of the run.
      workdir: folder of the run.
      coordinator: how this process finds the others, see `flaxcnn.training.distributed.initialize`.
      num_processes: of the run, where the coordinator is an address.
      process_id: of this process, where the coordinator is an address.
    """

    config: TrainConfig
    workdir: Path
    coordinator: str
    num_processes: int | None
    process_id: int | None


_OPTIONS = "model.options."
_NAMED = 4  # keys in a hint
_FLAGS = ("config", "workdir", "coordinator", "num_processes", "process_id")
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def parse(argv: list[str], default: Path) -> Command:
    """Returns what a command line asks for.

    Args:
      argv: the command line, the program first.
      default: configuration file to take where none is named.

    Raises:
      UserError: an unknown flag or leaf, a value of the wrong type, a configuration file that fails.
      SystemExit: after --help.
    """
    argv = [argv[0], *_from_files(argv[1:])]
    path = _config_file(argv) or default
    config = load_config(path)
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(_usage(argv[0], path, config))
        raise SystemExit(0)
    overrides, others = _split(argv[1:], config)
    _check_paths(overrides, config)
    unset = [leaf for leaf, value in overrides.items() if _unsets(value, leaf_type(config, leaf))]
    argv = [argv[0], *(_written(*each) for each in overrides.items() if each[0] not in unset), *others]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=values, sys_argv=argv, accept_new_attributes=True
        )
        flags.DEFINE_string("workdir", f"runs/{_run_name(path)}", "", flag_values=values)
        flags.DEFINE_string("coordinator", "auto", "", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "", flag_values=values)
        flags.DEFINE_integer("process_id", None, "", flag_values=values)
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, config)) from None
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(_explain(str(error), overrides, config)) from None
    if len(rest) > 1:
        name = rest[1].partition("=")[0].removeprefix("config.")
        hint = (_hint(name, config) if "=" in rest[1] else "") or "; flags are written --name=value"
        raise UserError(f"unexpected argument {rest[1]!r}{hint}")
    if not values.workdir:
        raise UserError("--workdir is empty; name a folder")
    for leaf in unset:
        section, _, field = leaf.rpartition(".")
        setattr(get_leaf(values.config, section) if section else values.config, field, None)
    return Command(
        config=values.config,
        workdir=local_path(values.workdir),
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )


def load_config(path: str | Path) -> TrainConfig:
    """Returns what `get_config()` of a Python file returns.

    Raises:
      UserError: there is no such file, it fails, or it gives something else.
    """
    path = local_path(path)
    if not path.is_file():
        raise UserError(f"there is no configuration file {path}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise UserError(f"configuration file {path} is not a .py file")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"configuration file {path} fails: {type(error).__name__}: {reason}") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"get_config() of {path} must return a TrainConfig, got {type(config).__name__}")
    return config


def _from_files(argv: list[str]) -> list[str]:
    """Returns a command line in which what the files named by --flagfile hold stands in their place."""
    try:
        return flags.FlagValues().read_flags_from_files(argv)
    except (flags.Error, OSError) as error:
        raise UserError(first_line(error)) from None


def _config_file(argv: list[str]) -> Path | None:
    """Returns the file of the last --config, which is the one that counts."""
    file = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument in ("--config", "-config"):
            file = following or ""
        elif match := re.match(r"--?config=(.*)", argument):
            file = match[1]
    if file == "":
        raise UserError("--config is empty; name a file, such as --config=configs/digits_lenet5.py")
    return None if file is None else local_path(file)


def _split(arguments: list[str], config: TrainConfig) -> tuple[dict[str, str | bool | None], list[str]]:
    """Takes the overrides out of a command line: of two of one key, or of a key and one within it, the last counts.

    Returns:
      The value of each key: the text, True or False of `--config.KEY` and `--noconfig.KEY`, or None where it is
      missing; and the other arguments but --config.
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
            if value is None and leaf_type(config, path) in (bool, None):  # None: an option of the model
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


def _written(path: str, value: str | bool | None) -> str:
    """Returns an override as absl reads it."""
    if isinstance(value, str):
        return f"--config.{path}={value}"
    return f"--noconfig.{path}" if value is False else f"--config.{path}"


def _unsets(value: str | bool | None, kind: object) -> bool:
    """Returns whether `--config.KEY=None` unsets a key that may be unset; absl has no way to say it."""
    return value in ("None", "none") and isinstance(kind, types.UnionType)


def _check_paths(overrides: Iterable[str], config: TrainConfig) -> None:
    known = leaf_paths(config)
    for path in overrides:
        if path not in known and not path.startswith(_OPTIONS):
            hint = _among(_like(path, known))
            raise UserError(f"unknown configuration key {path!r}{hint} (--help lists all)")


def _unknown_flag(name: str, config: TrainConfig) -> str:
    return f"unknown flag --{name}{_hint(name, config)} (--help lists all)"


def _hint(name: str, config: TrainConfig) -> str:
    """Returns a hint of the flags that someone may have meant who wrote `name`, or ""."""
    found = [f"--{flag}" for flag in difflib.get_close_matches(_snake(name), _FLAGS, n=1, cutoff=0.8)]
    return _among(found or [f"--config.{leaf}" for leaf in _like(name, leaf_paths(config))])


def _like(name: str, known: list[str]) -> list[str]:
    """Returns the keys that end as a name does, or lie within it, or that it abbreviates or misspells."""
    name = _snake(name)
    section, _, last = name.rpartition(".")
    if name.startswith(_OPTIONS):
        return [name]
    tails = {leaf: leaf.split(".")[-1] for leaf in known}
    found = [leaf for leaf in known if f".{leaf}".endswith(f".{name}")]
    found = found or [leaf for leaf in known if leaf.startswith(f"{name}.")]
    found = found or [leaf for leaf, tail in tails.items() if tail == last]
    if not found and len(last) > 1:  # lr, bs, wd
        found = [leaf for leaf, tail in tails.items() if "".join(word[0] for word in tail.split("_")) == last]
        found = [leaf for leaf in found if leaf.startswith(section)] or found
    if not found and re.search("(epoch|step|iteration)s?$", last):
        found = ["duration"]
    found = found or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = difflib.get_close_matches(last, tails.values(), n=1, cutoff=0.6)
    return found or [leaf for leaf, tail in tails.items() if tail in near]


def _among(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"; did you mean {', '.join(names[:_NAMED])}{more}?" if names else ""


def _snake(name: str) -> str:
    return name.replace("-", "_")


def _explain(message: str, overrides: Mapping[str, str | bool | None], config: TrainConfig) -> str:
    """Says in the user's words what absl says of a value that it cannot parse."""
    for path, value in overrides.items():
        if message.startswith(f"flag --config.{path}={value}:") and leaf_type(config, path):
            return f"{path} takes {type_name(leaf_type(config, path))}, got {value!r}"
    return next(iter(message.strip().splitlines()), "the command line cannot be read")


def _run_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return "_".join(parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:])


def _usage(program: str, path: Path, config: TrainConfig) -> str:
    lines = [
        f"usage: python {program} [--config=FILE] [--config.KEY=VALUE ...] [--workdir=FOLDER]",
        "",
        "  --workdir=FOLDER    of the run, which the same command continues",
        "  --coordinator=auto  joins the processes that SLURM, Open MPI or a TPU pod has started; cluster joins",
        "                      whatever JAX detects; none runs alone; HOST:PORT, where process 0 listens, takes",
        "                      --num_processes=COUNT and --process_id=INDEX",
        "",
        f"keys, their values in {path}, and their meaning:",
    ]
    for leaf in leaf_paths(config):
        value = get_leaf(config, leaf)
        shown = value.to_dict() if leaf == _OPTIONS[:-1] else value
        lines.append(f"  --config.{leaf + '=' + str(shown):<42}  {leaf_meaning(config, leaf)}")
    return "\n".join(lines)
