"""Importing is light, and rooms import only downward."""

import ast
import functools
import graphlib
import subprocess
import sys

import pytest

import flaxcnn
import flaxcnn.data
import flaxcnn.ops
import flaxcnn.training
from tests.conftest import ROOT

HEAVY = ("tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "cv2", "sklearn", "tensorboardX", "grain")

# Each room, and each file inside a room, may import itself and those after it.
ROOMS = ("commands", "trained", "training", "runs", "inference", "data", "parallel", "weights", "inspect", "models")
ROOMS += ("ops", "config", "cores", "cache", "atomic", "paths", "terminal", "errors", "lazy")
TRAINING = ("loop", "milestones", "report", "setup", "compiled_steps", "evaluation", "experiment", "train_step")
TRAINING += ("eval_step", "metrics", "optimizer", "batch_parts", "finetune", "losses", "plan", "state")
DATA = ("loading", "resizing", "dataset", "sources", "tfds", "decoding", "preprocess", "augment", "time_series")


@pytest.mark.parametrize("package", [flaxcnn, flaxcnn.data, flaxcnn.ops, flaxcnn.training])
def test_public_names_are_there_and_others_are_not(package):
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith("flaxcnn.")
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nonsense"):
        package.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("flaxcnn", (*HEAVY, "jax")),
        ("flaxcnn.models.lenet", HEAVY),
        ("flaxcnn.commands.main", (*HEAVY, "jax")),
        ("flaxcnn.data.loading.worker", ("jax", "flax")),  # a process that decodes images
    ],
)
def test_importing_loads_nothing_heavy(module, heavy):
    check = f"import {module}, sys; print(*{{name.split('.')[0] for name in sys.modules}} & set({heavy}))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def module_of(path):
    """The name of the module in a file, such as flaxcnn.training.loop."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PACKAGE = {module_of(path): path for path in (ROOT / "flaxcnn").rglob("*.py")}


@functools.cache
def imports_of(module):
    """The modules of flaxcnn that a module imports when it is itself imported, or later."""
    found = set()
    for node in ast.walk(ast.parse(PACKAGE[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in PACKAGE else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & PACKAGE.keys()


def within(prefix):
    """The modules below a package, without it."""
    return [module for module in PACKAGE if module.startswith(f"{prefix}.")]


@pytest.mark.parametrize(
    ("prefix", "floors"), [("flaxcnn", ROOMS), ("flaxcnn.training", TRAINING), ("flaxcnn.data", DATA)]
)
def test_imports_run_downward(prefix, floors):
    def floor(module):
        name = module.removeprefix(f"{prefix}.")
        own = [each for each in floors if name == each or name.startswith(f"{each}.")]
        assert own, f"{module} is not among the floors of this test"
        return floors.index(max(own, key=len))

    modules = [module for module in within(prefix) if module != "flaxcnn.__main__"]
    assert len(modules) > 10
    for module in modules:
        for other in imports_of(module) & set(modules):
            assert floor(other) >= floor(module), f"{module} imports {other}"


@pytest.mark.parametrize("room", [room for room in ROOMS if within(f"flaxcnn.{room}")])
def test_no_two_files_of_a_room_import_each_other(room):
    modules = set(within(f"flaxcnn.{room}"))
    graphlib.TopologicalSorter({module: imports_of(module) & modules for module in modules}).prepare()
