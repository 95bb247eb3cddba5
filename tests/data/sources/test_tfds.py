"""TFDS sets as a source: the images, labels and splits that TFDS itself reads, and messages for mistakes."""

import io
import pickle

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flaxcnn import UserError
from flaxcnn.data.decoding.images import decode
from flaxcnn.data.sources.opening import open_source, open_splits
from flaxcnn.data.tfds.preparation import prepare


class PartlyLabelled(tfds.core.GeneratorBasedBuilder):
    """Color images of different sizes; those of `test` have no labels."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
        features = {"photo": tfds.features.Image(), "kind": tfds.features.ClassLabel(names=["low", "high"])}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("photo", "kind")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

    def _generate_examples(self, count):
        for number in range(count):
            image = np.full((10 + number, 12, 3), (10 * number, number, 255 - number), np.uint8)
            encoded = cv2.imencode(".png", image[..., ::-1])[1]
            yield number, {"photo": io.BytesIO(encoded), "kind": number // 10 if count == 20 else -1}


@pytest.fixture(scope="module")
def partly_labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    prepare("partly_labelled", str(folder))
    return str(folder)


def assert_equals_tfds(source, expected, image_key, label_key):
    assert len(source) == len(expected)
    for (encoded, label), example in zip(source.read(source.items(range(len(source)))), expected, strict=True):
        assert label == example[label_key]
        np.testing.assert_array_equal(decode(encoded, source.image_shape[2]), example[image_key])


@pytest.mark.parametrize("split", ["test", "train[1400:]+test[:10]", "train[:1%]"])
def test_digits_are_what_tfds_reads(data_dir, split):
    source = open_source("digits", split, str(data_dir))
    assert source.image_shape == (8, 8, 1) and source.class_names == tuple("0123456789")
    expected = tfds.builder("digits", data_dir=data_dir, file_format="array_record").as_data_source(split)
    assert_equals_tfds(source, expected, "image", "label")


def test_images_of_different_sizes_are_what_tfds_reads(partly_labelled):
    source = open_source("partly_labelled", "train", partly_labelled)
    assert source.image_shape == (None, None, 3) and source.class_names == ("low", "high")
    expected = tfds.builder("partly_labelled", data_dir=partly_labelled, file_format="array_record")
    assert_equals_tfds(source, expected.as_data_source("train"), "photo", "kind")


def test_images_without_a_label_are_refused_unless_all_splits_are_opened(partly_labelled):
    source = open_source("partly_labelled", "test", partly_labelled)
    with pytest.raises(UserError, match="split 'test' of partly_labelled holds images without a label"):
        source.read([0])
    sources = open_splits("partly_labelled", partly_labelled)
    assert [label for _, label in sources["test"].read(range(5))] == [-1] * 5
    assert {label for _, label in sources["train"].read(range(20))} == {0, 1}


def test_a_tfds_set_can_be_sent_to_another_process(data_dir):
    source = open_source("digits", "train", str(data_dir))
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 1438 and copy.read([7, 1437, 7]) == source.read(source.items(np.array([7, 1437, 7])))
    assert source.describe(7) == "image 7 of split 'train' of digits"


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("tset", r"data set digits has no split 'tset'; did you mean test\?"),
        ("test[:400]", r"data set digits has no part 'test\[:400\]': its split has 359 images"),
        ("all[:50%]", r"data set digits has no split 'all\[:50%\]'"),
        ("test[3:3]", r"split 'test\[3:3\]' of data set digits is empty"),
    ],
)
def test_missing_splits_of_a_tfds_set_are_errors(data_dir, split, message):
    with pytest.raises(UserError, match=message) as raised:
        open_source("digits", split, str(data_dir))
    assert "\n" not in str(raised.value)


def test_a_set_that_is_not_prepared_says_how(tmp_path):
    message = (
        f"data set mnist is not prepared in {tmp_path}; run: python -m flaxcnn prepare mnist --data-dir {tmp_path}"
    )
    with pytest.raises(UserError, match=message):
        open_source("mnist", "train", str(tmp_path))


def test_a_hint_names_each_data_set_once(data_dir):
    open_source("digits", "train", str(data_dir))
    with pytest.raises(UserError, match="did you mean") as raised:
        open_source("digit", "train", str(data_dir))
    names = str(raised.value).split("did you mean ")[1].rstrip("?").split(", ")
    assert "digits" in names and len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["pets", "mnist", "./pets", "/no/such/folder", "WHOLE", "my pets", "Sub/pets"])
def test_a_path_instead_of_a_name_is_an_error_that_says_how_to_write_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / "pets") if name == "WHOLE" else name
    if name != "/no/such/folder":
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"a folder of images is written folder:{name}"):
        open_source(name, "train", str(tmp_path / "sets"))
