"""Preparing: files staged by hand are checked before anything is written."""

import hashlib
import io
import os
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from flaxcnn import UserError
from flaxcnn.data.tfds import preparation
from flaxcnn.data.tfds.preparation import prepare

FASHION = Path("/usr/share/datasets/fashion-mnist")
FILES = {"a.bin": b"first", "b.bin": b"second"}


class Staged(tfds.core.GeneratorBasedBuilder):
    """Two files from a host that does not exist; each becomes a gray image of the code of its first letter."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar = {
        f"http://nowhere.invalid/files/{name}": checksums.UrlInfo(
            size=tfds.core.utils.Size(len(data)), checksum=hashlib.sha256(data).hexdigest(), filename=name
        )
        for name, data in FILES.items()
    }

    def _info(self):
        label = tfds.features.ClassLabel(num_classes=2)
        features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": label}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download(sorted(self.url_infos)))}

    def _generate_examples(self, paths):
        for label, path in enumerate(paths):
            image = np.full((4, 4), Path(path).read_bytes()[0], np.uint8)
            yield label, {"image": io.BytesIO(cv2.imencode(".png", image)[1]), "label": label}


@pytest.fixture(autouse=True)
def builders_here_need_no_tensorflow(monkeypatch):
    monkeypatch.setattr(preparation, "has_tensorflow", lambda: True)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def test_staged_files_are_prepared(tmp_path, source):
    (source / "unrelated.txt").write_text("ignored")
    builder = prepare("staged", str(tmp_path / "data"), source)
    assert builder.is_prepared() and builder.info.splits["train"].num_examples == 2
    assert builder.info.file_format.value == "array_record"
    records = {int(r["label"]): r["image"][0, 0, 0] for r in builder.as_data_source("train")}
    assert records == {0: ord("f"), 1: ord("s")}


def test_preparing_again_does_nothing(tmp_path, source):
    data_dir = tmp_path / "data"
    first = prepare("staged", str(data_dir), source)
    before = sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*"))
    assert prepare("staged", str(data_dir)).data_path == first.data_path
    assert sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*")) == before


def test_a_changed_byte_is_refused_and_nothing_written(tmp_path, source):
    (source / "b.bin").write_bytes(b"sEcond")
    with pytest.raises(UserError, match=r"b\.bin is not the file that staged was published with") as raised:
        prepare("staged", str(tmp_path / "data"), source)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_a_changed_byte_is_refused_also_when_the_set_is_prepared_already(tmp_path, source):
    prepare("staged", str(tmp_path / "data"), source)
    (source / "b.bin").write_bytes(b"sEcond")
    with pytest.raises(UserError, match="is not the file that staged was published with"):
        prepare("staged", str(tmp_path / "data"), source)


def test_a_missing_file_without_network_is_named_and_nothing_left(tmp_path, source):
    (source / "b.bin").unlink()
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with pytest.raises(
        UserError, match=r"cannot download http://nowhere\.invalid/files/b\.bin: .*--from"
    ) as raised:
        prepare("staged", str(data_dir), source)
    assert "\n" not in str(raised.value)
    assert not list(data_dir.iterdir())


@pytest.mark.parametrize("content", [None, "nothing of use"])
def test_a_useless_folder_is_refused(tmp_path, content):
    folder = tmp_path / "other"
    if content:
        folder.mkdir()
        (folder / "x").write_text(content)
    message = r"holds none of the files of staged: a\.bin, b\.bin" if content else "is not a folder"
    with pytest.raises(UserError, match=message):
        prepare("staged", str(tmp_path / "data"), folder)
    assert not (tmp_path / "data").exists()


def test_missing_tensorflow_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "has_tensorflow", lambda: False)
    with pytest.raises(UserError, match=r"preparing mnist needs TensorFlow: pip install -e '\.\[prepare\]'"):
        prepare("mnist", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_set_that_only_tensorflow_reads_is_refused(tmp_path, source):
    builder = prepare("staged", str(tmp_path / "data"), source)
    info = Path(builder.data_path) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="data set staged is prepared as tfrecord, which only"):
        prepare("staged", str(tmp_path / "data"), source)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_is_the_genuine_one(tmp_path):
    pytest.importorskip("tensorflow", reason="needs the prepare extra")
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in FASHION.iterdir():
        (changed / path.name).symlink_to(path)
    name = "t10k-labels-idx1-ubyte.gz"
    data = bytearray((FASHION / name).read_bytes())
    data[1000] ^= 1
    (changed / name).unlink()
    (changed / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is not the file that fashion_mnist was published with"):
        prepare("fashion_mnist", str(tmp_path / "data"), changed)
    assert not (tmp_path / "data").exists()

    builder = prepare("fashion_mnist", os.environ["TFDS_DATA_DIR"], FASHION)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 60000,
        "test": 10000,
    }
