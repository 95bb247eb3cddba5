"""The help that `flaxcnn train --help` and `python train.py --help` print."""

import dataclasses
import itertools
import textwrap
from pathlib import Path

from ml_collections import ConfigDict

from flaxcnn.config import TrainConfig
from flaxcnn.config.leaves import leaf_meaning, leaves
from flaxcnn.config.recipes import recipe_names

_FLAGS = """\
usage: {program} [--config=RECIPE] [--config.KEY=VALUE ...] [--workdir=FOLDER]

Train a network by a recipe. The same command, given again, continues where it stopped.

flags:
  --config=RECIPE        name of a recipe, such as fashion_mnist/lenet5, or path of a Python file whose get_config()
                         returns a TrainConfig (default: {default})
  --config.KEY=VALUE     value of one of the keys below; --noconfig.KEY switches a key off
  --workdir=FOLDER       folder of the run: its checkpoints, metrics and results (default: runs/ and the name of the
                         recipe, here {workdir})
  --flagfile=FILE        file with more flags, one per line
  --coordinator=HOW      how the processes of a run find each other: auto joins those that SLURM, Open MPI or a TPU
                         pod has started, cluster those that JAX detects, none runs alone, and HOST:PORT, at which
                         process 0 listens, needs the two flags below (default: auto)
  --num_processes=COUNT  number of processes
  --process_id=INDEX     index of this process, from 0

recipes:
"""


def usage(program: str, path: Path, config: TrainConfig, *, default: str, workdir: str) -> str:
    """Returns the help: flags, recipes, and all keys with their values in one recipe and their meanings.

    Args:
      program: name of the program, such as "flaxcnn train".
      path: file path of that recipe.
      config: configuration of that recipe.
      default: name of the recipe that is used if the command line names none.
      workdir: folder of the run that is used if the command line names none.
    """
    lines = [_FLAGS.format(program=program, default=default, workdir=workdir).rstrip()]
    folders: dict[str, list[str]] = {}
    for name in recipe_names():
        folder, slash, file = name.rpartition("/")
        folders.setdefault(folder + slash, []).append(file)
    for folder, files in sorted(folders.items()):
        indent = f"  {folder:<15}" if folder else "  "
        lines += textwrap.wrap(", ".join(files), 114, initial_indent=indent, subsequent_indent=" " * 17)
    lines += ["", f"keys, with their values in {path}:"]
    sections = {field.name: field.metadata["meaning"] for field in dataclasses.fields(config)}
    for section, of_section in itertools.groupby(leaves(config), key=lambda leaf: leaf[0].rpartition(".")[0]):
        lines += ["", f"  {section}: {sections[section]}"] if section else []
        for key, _, value in of_section:
            shown = value.to_dict() if isinstance(value, ConfigDict) else value
            lines.append(f"  --config.{f'{key}={shown}':<42}  {leaf_meaning(config, key)}")
    return "\n".join(lines)
