"""What the tests share: `digits` prepared once, and tests in double precision."""

import os
from pathlib import Path

import jax
import pytest

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """Keeps prepared sets out of the home directory, in this process and in those that tests start."""
    folder = tmp_path_factory.mktemp("tfds")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def digits(data_dir):
    from flaxcnn.data.prepare import prepare

    return prepare("digits", str(data_dir))


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
    )
