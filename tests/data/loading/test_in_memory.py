"""Data sets: digits against scikit-learn, and the general reader against a builder made here."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from flaxcnn import UserError
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.loading.in_memory import decode_all
from flaxcnn.data.sources.opening import open_source


def no_bad(example, reason):
    raise AssertionError((example, reason))


def decoded(name, split, size=None, data_dir=None):
    source = open_source(name, split, data_dir)
    stored = source.image_shape
    dataset = (
        ImageDataset(source, stored)
        if size is None
        else ImageDataset(source, (size, size, stored[2]), crop="center")
    )
    return decode_all(dataset, no_bad)


def test_digits_are_those_of_scikit_learn():
    original = load_digits()
    expected = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(original.images, original.target, strict=True)
    }
    train, test = decoded("digits", "train"), decoded("digits", "test")
    assert (len(train["label"]), len(test["label"])) == (1438, 359)
    assert train["image"].shape == (1438, 8, 8, 1) and train["image"].dtype == np.uint8
    assert train["label"].dtype == np.int32
    assert train["mask"].tolist() == [1] * 1438
    assert open_source("digits", "train").class_names == tuple("0123456789")
    found = [
        {(image.tobytes(), int(label)) for image, label in zip(part["image"], part["label"], strict=True)}
        for part in (train, test)
    ]
    assert found[0] | found[1] == expected and not found[0] & found[1]


def test_splits_can_be_sliced():
    whole = decoded("digits", "train")
    part = decoded("digits", "train[:90%]")
    assert len(part["label"]) == 1294
    np.testing.assert_array_equal(part["image"], whole["image"][:1294])


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
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for builder in (Shapes, Numbers):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def test_pictures_of_different_sizes_are_brought_to_one(prepared):
    dataset = decoded("shapes", "train", size=16, data_dir=prepared)
    assert dataset["image"].shape == (9, 16, 16, 3)
    assert open_source("shapes", "train", prepared).class_names == ("red", "green", "blue")
    np.testing.assert_array_equal(dataset["image"].mean((1, 2)).argmax(-1), dataset["label"])
    assert sorted(dataset["label"]) == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digitz", "train"), "unknown data set 'digitz'; did you mean digits"),
        (("digits", "tests"), "data set digits has no split 'tests'; did you mean test"),
        (("digits:9.9.9", "train"), "cannot open data set 'digits:9.9.9'"),
        (("cifar10", "train"), r"cifar10 is not prepared in .*; run: python -m flaxcnn prepare cifar10"),
        (("numbers", "train"), "numbers is not made of images with one class label"),
        (("digits", "train[5:5]"), r"split 'train\[5:5\]' of data set digits is empty"),
    ],
)
def test_mistakes_are_one_line(prepared, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        decoded(*arguments, data_dir=prepared if arguments[0] == "numbers" else None)
    assert "\n" not in str(raised.value)


def test_images_without_a_label_are_refused():
    source = dataclasses.replace(open_source("digits", "train"), class_names=tuple("012345678"))
    with pytest.raises(UserError, match="without a label"):
        decode_all(ImageDataset(source, (8, 8, 1)), no_bad)


def test_pictures_that_cannot_be_read_are_black_and_masked(prepared):
    """Eight of the nine have not the size that is claimed here."""
    noted = {}
    dataset = decode_all(ImageDataset(open_source("shapes", "train", prepared), (22, 28, 3)), noted.__setitem__)
    assert len(noted) == 8 and dataset["mask"].sum() == 1
    assert [bool(image.any()) for image in dataset["image"]] == dataset["mask"].astype(bool).tolist()
    assert all("pixels instead of 28x22" in reason for reason in noted.values())
