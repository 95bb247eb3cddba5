"""Puts the recipes of configs/ into a wheel, as flaxcnn/recipes; pyproject.toml says everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes beside the modules that are built."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:  # then the package is that of the checkout, and finds configs/ there
            recipes = Path(self.build_lib, "flaxcnn", "recipes")
            shutil.rmtree(recipes, ignore_errors=True)  # a recipe of an earlier build may be gone
            shutil.copytree("configs", recipes, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithRecipes})
