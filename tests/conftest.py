"""What the tests share: `digits` prepared once, eight devices, and tests in double precision."""

import os
import shutil
import tempfile
from pathlib import Path

# TFDS reads this when it is imported: prepared sets stay out of the home directory, here and in started programs.
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="flaxcnn-tests-")
# Many tests compile the same programs; they do so once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(os.environ["TFDS_DATA_DIR"], "compiled"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig

jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def data_dir():
    """The folder of prepared sets, with `digits` in it."""
    from flaxcnn.data.prepare import prepare

    folder = Path(os.environ["TFDS_DATA_DIR"])
    prepare("digits", str(folder))
    yield folder
    shutil.rmtree(folder)


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
        data=DataConfig(name="digits", data_dir=str(data_dir), image_size=12, crop_padding=1),
        optimizer=OptimizerConfig(learning_rate=0.05, weight_decay=1e-4),
        parallel=ParallelConfig(strategy="jit"),
    )
