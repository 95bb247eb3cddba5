"""The described preprocessing, done with Pillow and NumPy, gives the pixels of prediction."""

import json

import cv2
import jax
import numpy as np
import pytest

from flaxcnn import create_model, export, model_info
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.sources.folder import open_files
from flaxcnn.inference import describe_preprocessing
from tests.images import piece, read_as_told
from tests.variables import random_variables


@pytest.mark.parametrize("image_shape", [(24, 24, 3), (24, 16, 3), (17, 24, 3), (15, 24, 1), (64, 64, 1)])
@pytest.mark.parametrize("size", [(60, 90), (91, 60), (24, 24), (150, 23), (16, 24)])
def test_images_are_read_as_told(tmp_path, image_shape, size):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), piece("flower", 1, *size))
    dataset = ImageDataset(open_files([path]), image_shape, crop="center")
    images = np.empty((1, *image_shape), np.uint8)
    assert dataset.decode_into(images, 0, [0], dataset.source.items([0])) == ([-1], [])
    told = read_as_told(path, image_shape, describe_preprocessing(image_shape))
    assert images.std() > 1 and told.dtype == np.uint8
    # Grey is rounded in another way by OpenCV.
    np.testing.assert_allclose(told.astype(int), images, atol=0 if image_shape[2] == 3 else 1)


def test_a_floating_input_is_told_with_the_protocol_of_published_weights(tmp_path):
    info = model_info("resnet18")
    (weights,) = info.weights
    told = describe_preprocessing(
        (weights.crop, weights.crop, 3),
        "float32",
        shorter_side=weights.resize,
        interpolation=weights.interpolation,
        mean=info.mean,
        std=info.std,
    )
    cv2.imwrite(str(tmp_path / "image.png"), piece("flower", 1, 300, 400))
    image = read_as_told(tmp_path / "image.png", (224, 224, 3), told)
    assert image.shape == (1, 224, 224, 3) and image.dtype == np.float32 and -2.2 < image.min() < image.max() < 2.7
    model = create_model("lenet5", num_classes=2)
    export(tmp_path / "program", model, random_variables(model, (1, 28, 28, 3)), (28, 28, 3), preprocessing=told)
    about = json.loads((tmp_path / "program.json").read_text())
    assert about["preprocessing"] == told and "class_names" not in about
    program = jax.export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    assert about["dtype"] == program.in_avals[0].dtype.name == "float32"
