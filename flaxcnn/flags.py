"""The command line of a training script: `--config=FILE`, an override for every leaf of it, and `--workdir`."""

import dataclasses
import importlib.util
import re
import types
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flaxcnn.config import TrainConfig, get_leaf, leaf_meaning, leaf_paths, leaf_type, type_name
from flaxcnn.errors import UserError, nearest


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
_OVERRIDE = re.compile(r"^--?(?:no)?config\.([^=]+)(?:=(.*))?$", re.DOTALL)


def parse(argv: list[str], default: Path) -> Command:
    """Returns what a command line asks for.

    Args:
      argv: the command line, the program first.
      default: configuration file to take where none is named.

    Raises:
      UserError: an unknown flag or leaf, a value of the wrong type, a configuration file that fails.
      SystemExit: after --help.
    """
    path = Path(_value_of("config", argv) or default)
    config = load_config(path)
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(_usage(argv[0], path, config))
        raise SystemExit(0)
    _check_paths(argv, config)
    argv, unset = _without_unset(argv, config)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dataclass(
            "config",
            config,
            flag_values=values,
            sys_argv=argv,
            parse_fn=load_config,
            accept_new_attributes=True,
        )
        flags.DEFINE_string("workdir", f"runs/{_run_name(path)}", "", flag_values=values)
        flags.DEFINE_string("coordinator", "auto", "", flag_values=values)
        flags.DEFINE_integer("num_processes", None, "", flag_values=values)
        flags.DEFINE_integer("process_id", None, "", flag_values=values)
        rest = values(argv)
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(_explain(str(error), argv, config)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    if not values.workdir:
        raise UserError("--workdir is empty; name a folder")
    for leaf in unset:
        section, _, field = leaf.rpartition(".")
        setattr(get_leaf(values.config, section) if section else values.config, field, None)
    return Command(
        config=values.config,
        workdir=Path(values.workdir).expanduser(),
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )


def load_config(path: str | Path) -> TrainConfig:
    """Returns what `get_config()` of a Python file returns.

    Raises:
      UserError: there is no such file, it fails, or it gives something else.
    """
    path = Path(path)
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


def _check_paths(argv: list[str], config: TrainConfig) -> None:
    known = leaf_paths(config)
    for path, _ in _overrides(argv):
        if path in known or path.startswith(_OPTIONS):
            continue
        sections = [leaf for leaf in known if leaf.startswith(path + ".")]
        same = sections or [leaf for leaf in known if leaf.split(".")[-1] == path.split(".")[-1]]
        hint = f"; did you mean {', '.join(same)}?" if same else nearest(path, known)
        raise UserError(f"unknown configuration key {path!r}{hint} (--help lists all)")


def _value_of(name: str, argv: list[str]) -> str | None:
    """The last value given for a flag, which is the one that counts."""
    value = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument in (f"--{name}", f"-{name}"):
            value = following
        elif match := re.match(rf"--?{name}=(.*)", argument):
            value = match[1]
    return value


def _overrides(argv: list[str]) -> list[tuple[str, str | None]]:
    return [match.groups() for match in map(_OVERRIDE.match, argv) if match]


def _without_unset(argv: list[str], config: TrainConfig) -> tuple[list[str], list[str]]:
    """Takes `--config.KEY=None` out of a command line, for keys that may be unset; absl has no way to say it."""
    unset = {
        path
        for path, value in _overrides(argv)
        if value in ("None", "none") and isinstance(leaf_type(config, path), types.UnionType)
    }
    kept = [argument for argument in argv if not any(re.match(rf"--?config\.{path}=", argument) for path in unset)]
    return kept, sorted(unset)


def _explain(message: str, argv: list[str], config: TrainConfig) -> str:
    """Says in the user's words what absl says of a value that it cannot parse."""
    for path, value in _overrides(argv):
        if value is not None and message.startswith(f"flag --config.{path}={value}:") and leaf_type(config, path):
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
