"""Importing is light, and rooms import only downward."""

import ast
import subprocess
import sys

import pytest

import flaxcnn
import flaxcnn.training
from tests.conftest import ROOT

HEAVY = ("tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "cv2", "sklearn", "tensorboardX", "grain")
# Each room may import those to its right.
ROOMS = ("cli", "flags", "training", "inference", "data", "weights", "inspect", "models", "ops", "config")
ROOMS += ("cache", "atomic", "paths", "errors", "lazy")


@pytest.mark.parametrize("package", [flaxcnn, flaxcnn.training])
def test_public_names_are_there_and_others_are_not(package):
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith("flaxcnn.")
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nonsense"):
        package.nonsense  # noqa: B018


@pytest.mark.parametrize("statement", ["import flaxcnn", "import flaxcnn.models.lenet", "import flaxcnn.cli"])
def test_importing_loads_nothing_heavy(statement):
    check = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}} & set({HEAVY}))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def imported_rooms(path):
    """The rooms of flaxcnn that a file imports when it is itself imported, or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "flaxcnn" and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1]


def test_rooms_import_only_downward():
    files = [path for path in (ROOT / "flaxcnn").rglob("*.py") if path.name not in ("__main__.py",)]
    assert len(files) > 20
    for path in files:
        room = path.relative_to(ROOT / "flaxcnn").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported_rooms(path):
            assert ROOMS.index(other) >= ROOMS.index(room), f"{path} imports from {other}"
