"""Recipes: Python files whose `get_config()` returns a `TrainConfig`, found by path or by name.

The project's own recipes are in configs/ in a checkout, and in flaxcnn/recipes in an installed package.
"""

import difflib
import importlib.util
import os
from pathlib import Path

from flaxcnn.config.schema import TrainConfig
from flaxcnn.errors import UserError, nearest
from flaxcnn.paths import local_path

_PACKAGE = Path(__file__).parent.parent
_NAMED = 4  # maximum number of recipes in a hint


def recipe_folder() -> Path:
    """Returns the folder with the project's recipes."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def recipe_names() -> list[str]:
    """Returns the names of the project's recipes, such as "fashion_mnist/lenet5", sorted."""
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py"))


def recipe_name(path: Path) -> str:
    """Returns the name of a recipe: its path below the recipe folder, or else the file name, without ".py".

    Any folder named configs also counts as a recipe folder.
    """
    path = path.with_suffix("")
    if path.is_relative_to(recipe_folder()):
        return path.relative_to(recipe_folder()).as_posix()
    parts = path.parts
    return "/".join(parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:])


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """Returns the file path of a recipe.

    Args:
      recipe: path of a file; or the name of one of the project's recipes, optionally with configs/ in front and .py
        at the end.

    Raises:
      UserError: no file and no recipe has that name.
    """
    path = local_path(recipe)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".py")
    names = recipe_names()
    if name in names:
        return recipe_folder() / f"{name}.py"
    hint = _near(name, names) or " (flaxcnn train --help lists the recipes)"
    raise UserError(f"there is no configuration file {path}, and no recipe of that name{hint}")


def _near(name: str, names: list[str]) -> str:
    """Returns a hint that lists the recipes with names similar to `name`, or ""."""

    def file(recipe: str) -> str:
        return recipe.rpartition("/")[2]

    meant = difflib.get_close_matches(file(name), map(file, names), n=1)
    found = [recipe for recipe in names if file(recipe) in meant]  # in any folder
    closest = difflib.get_close_matches(name, found, n=_NAMED, cutoff=0)
    return f"; did you mean {', '.join(closest)}?" if closest else nearest(name, names)


def load_config(recipe: str | os.PathLike[str]) -> TrainConfig:
    """Loads a recipe and returns the configuration that its `get_config()` returns.

    Args:
      recipe: path of a Python file, or the name of one of the project's recipes, such as "fashion_mnist/lenet5".

    Raises:
      UserError: the file does not exist or raises an error, or `get_config()` does not return a `TrainConfig`.
    """
    path = find_recipe(recipe)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"configuration file {path} is not a .py file")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"configuration file {path} fails: {type(error).__name__}: {reason}") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"get_config() of {path} must return a TrainConfig, got {type(config).__name__}")
    return config
