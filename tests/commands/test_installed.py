"""What a wheel installs: the command and the recipes, without a checkout."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, and an environment in which it comes before the checkout."""
    target, checkout = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("checkout")
    # A copy, because a build writes into its folder, and another process may run the other test of this file.
    for name in ("flaxcnn", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={target}", str(checkout)]
    subprocess.run(command, check=True)
    return target, os.environ | {"PYTHONPATH": str(target)}


@pytest.mark.slow
def test_an_installed_command_trains_by_name_and_uses_what_it_trained(installed, tmp_path):
    target, environment = installed

    def flaxcnn(*arguments):
        command = [sys.executable, str(target / "bin" / "flaxcnn"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"in {target}/flaxcnn/recipes/fashion_mnist/lenet5.py" in flaxcnn(
        "train", "--config=fashion_mnist/lenet5", "--help"
    )
    flaxcnn("train", "--config.duration=1 epochs")
    assert "of 359 right" in flaxcnn("evaluate", "runs/digits_lenet5")
    assert "resnet50" in flaxcnn("list")


@pytest.mark.slow
def test_every_recipe_is_installed(installed):
    target, _ = installed
    recipes = target / "flaxcnn" / "recipes"
    found = {path.relative_to(recipes): path.read_bytes() for path in recipes.rglob("*.py")}
    configs = ROOT / "configs"
    assert found == {path.relative_to(configs): path.read_bytes() for path in configs.rglob("*.py")}
