"""Data sets: digits against scikit-learn, and the general reader against a builder made here."""

import io

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from flaxcnn import UserError
from flaxcnn.data import datasets
from flaxcnn.data.datasets import load, resize_and_center_crop

GIB = 2**30


def test_digits_are_those_of_scikit_learn():
    original = load_digits()
    expected = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(original.images, original.target, strict=True)
    }
    train, test = load("digits", "train", limit_bytes=GIB), load("digits", "test", limit_bytes=GIB)
    assert (len(train), len(test)) == (1438, 359)
    assert train.images.shape == (1438, 8, 8, 1) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert train.class_names == tuple("0123456789")
    found = [
        {(image.tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True)}
        for part in (train, test)
    ]
    assert found[0] | found[1] == expected and not found[0] & found[1]


def test_splits_can_be_sliced():
    whole = load("digits", "train", limit_bytes=GIB)
    part = load("digits", "train[:90%]", limit_bytes=GIB)
    assert len(part) == 1294
    np.testing.assert_array_equal(part.images, whole.images[:1294])


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Colour pictures of different sizes: each red, green or blue all over, as JPEG and PNG."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["red", "green", "blue"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("picture", "kind")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(9)}

    def _generate_examples(self, count):
        for index in range(count):
            picture = np.zeros((20 + index, 30 - index, 3), np.uint8)
            picture[..., 2 - index % 3] = 200  # OpenCV writes blue, green, red
            encoded = cv2.imencode((".png", ".jpg")[index % 2], picture)[1]
            yield index, {"picture": io.BytesIO(encoded), "kind": ("red", "green", "blue")[index % 3]}


class Numbers(tfds.core.GeneratorBasedBuilder):
    """Not pictures at all."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"x": np.int64}))

    def _split_generators(self, dl_manager):
        return {"train": iter([(0, {"x": 1})])}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def prepared(data_dir):
    for builder in (Shapes, Numbers):
        builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


def test_pictures_of_different_sizes_are_brought_to_one(prepared):
    dataset = load("shapes", "train", image_size=16, limit_bytes=GIB)
    assert dataset.images.shape == (9, 16, 16, 3)
    assert dataset.class_names == ("red", "green", "blue")
    np.testing.assert_array_equal(dataset.images.mean((1, 2)).argmax(-1), dataset.labels)
    assert sorted(dataset.labels) == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digitz", "train"), "unknown data set 'digitz'; did you mean digits"),
        (("digits", "tests"), "data set digits has no split 'tests'; did you mean test"),
        (("digits:9.9.9", "train"), "cannot open data set 'digits:9.9.9'"),
        (("cifar10", "train"), r"cifar10 is not prepared in .*; run: python -m flaxcnn prepare cifar10"),
        (("shapes", "train"), "images of shapes differ in size; set data.image_size"),
        (("numbers", "train"), "numbers is not made of images with one class label"),
    ],
)
def test_mistakes_are_one_line(prepared, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        load(*arguments, limit_bytes=GIB)
    assert "\n" not in str(raised.value)


def test_a_set_that_does_not_fit_is_refused_before_it_is_read():
    with pytest.raises(UserError, match=r"takes 0.0 GiB decoded.*'train\[:10%\]'"):
        load("digits", "train", limit_bytes=1438 * 64 - 1)
    load("digits", "train", limit_bytes=1438 * 64)


def test_images_without_a_label_are_refused(monkeypatch):
    monkeypatch.setattr(datasets, "class_names", lambda builder: tuple("012345678"))
    with pytest.raises(UserError, match="without a label"):
        load("digits", "train", limit_bytes=GIB)


@pytest.mark.parametrize("shape", [(40, 56), (56, 40), (50, 50), (5, 7)])
def test_resize_and_crop_keeps_the_centre(shape):
    image = np.zeros((*shape, 1), np.uint8)
    image[shape[0] // 4 : -(shape[0] // 4), shape[1] // 4 : -(shape[1] // 4)] = 255
    result = resize_and_center_crop(image, (10, 10)).astype(float)
    assert result.shape == (10, 10, 1)
    assert result[4:6, 4:6].min() > 250
    np.testing.assert_allclose(result, result[::-1], atol=2)
    np.testing.assert_allclose(result, result[:, ::-1], atol=2)
