"""Runs and images that the tests of several verbs use."""

import cv2
import pytest

from flaxcnn.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.loading.in_memory import decode_all
from flaxcnn.data.sources.opening import open_source
from flaxcnn.training import loop
from tests.images import write_folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_dir):
    """A work directory with a network that reads digits fairly well."""
    model = ModelConfig(name="lenet5")
    model.options.activation = "tanh"
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = TrainConfig(
        batch_size=32,
        duration="8 epochs",
        model=model,
        data=DataConfig(image_size=12),
        optimizer=OptimizerConfig(learning_rate=0.05),
    )
    result = loop.fit(config, workdir)
    assert result.accuracy > 0.9
    return workdir, result


@pytest.fixture(scope="session")
def test_digits(data_dir):
    """The test split of digits: images (359, 8, 8, 1) and labels (359,)."""
    split = decode_all(ImageDataset(open_source("digits", "test"), (8, 8, 1)), on_bad=None)
    return split["image"], split["label"]


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory, test_digits):
    """The test images of digits as files, in a folder for each class."""
    folder = tmp_path_factory.mktemp("digits")
    for index, (image, label) in enumerate(zip(*test_digits, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / str(label) / f"{index:03}.png"), image)
    return folder


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """A folder without splits, and a run on it."""
    root = tmp_path_factory.mktemp("pets")
    folder = write_folder(root / "pets", 15)
    data = DataConfig(name=f"folder:{folder}", image_size=24)
    loop.fit(
        TrainConfig(batch_size=8, duration="9 steps", model=ModelConfig(name="lenet5"), data=data), root / "run"
    )
    return root / "run", folder
