"""What the tests share: `digits` prepared once, eight devices, and tests in double precision."""

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

# The processes of pytest-xdist inherit these from the one that starts them.
FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if FIRST:
    # TFDS reads this when it is imported: prepared sets stay out of the home directory.
    os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="flaxcnn-tests-")
    # Many tests compile the same programs; they do so once.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(os.environ["TFDS_DATA_DIR"], "compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # Most of a test's time is compiling; so it takes a quarter of it. Unknown flags end a process.
    quick = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    if metadata.version("jaxlib").startswith("0.10."):
        quick += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()

import jax
import pytest

from flaxcnn.config import AugmentConfig, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig

jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).resolve().parent.parent


def pytest_sessionstart():
    if FIRST:
        from flaxcnn.data.tfds.preparation import prepare

        prepare("digits")


def pytest_unconfigure():
    if FIRST:
        shutil.rmtree(os.environ["TFDS_DATA_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of prepared sets, with `digits` in it."""
    return Path(os.environ["TFDS_DATA_DIR"])


@pytest.fixture
def x64():
    """Double precision while the test runs."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def config(data_dir):
    """A run of two seconds on digits, with everything that keeps state: BatchNorm, momentum, augmentation."""
    model = ModelConfig(name="lenet5")
    model.options.norm = "batch_norm"
    return TrainConfig(
        batch_size=64,
        duration="2 epochs",
        model=model,
        data=DataConfig(name="digits", data_dir=str(data_dir), image_size=12),
        augment=AugmentConfig(crop_padding=1),
        optimizer=OptimizerConfig(learning_rate=0.05, weight_decay=1e-4),
        parallel=ParallelConfig(strategy="jit"),
    )
