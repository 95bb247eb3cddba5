"""Folders as a source: which images one holds, in which order and with which labels."""

import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.sources.opening import open_source, open_splits


def write(path, *files):
    """Writes files whose content is their own name."""
    for file in files:
        target = path / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(os.fsencode(file))
    return path


def opened(path, split="train"):
    return open_source(f"folder:{path}", split)


def contents(source):
    """Returns [(content, class name)] in order."""
    items = source.items(range(len(source)))
    return [(os.fsdecode(content), source.class_names[label]) for content, label in source.read(items)]


def files(source):
    return {content for content, _ in contents(source)}


def test_splits_are_folders_of_classes(tmp_path):
    path = write(
        tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg"
    )
    train, val = opened(path), opened(path, "val")
    assert train.class_names == val.class_names == ("cat", "dog") and train.image_shape == (None, None, 3)
    assert set(contents(train)) == {
        ("train/cat/1.jpg", "cat"),
        ("train/dog/1.jpg", "dog"),
        ("train/dog/2.jpg", "dog"),
    }
    assert set(contents(val)) == {("val/cat/3.jpg", "cat"), ("val/dog/4.jpg", "dog")}
    assert {split: len(source) for split, source in open_splits(f"folder:{path}").items()} == {"train": 3, "val": 2}


def test_without_splits_a_fifth_of_each_class_is_for_testing(tmp_path):
    sizes = {"ant": 30, "bee": 7, "cow": 3, "doe": 1}
    write(tmp_path, *(f"{kind}/{number}.png" for kind, size in sizes.items() for number in range(size)))
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert train.class_names == test.class_names == ("ant", "bee", "cow", "doe")
    assert np.bincount(test.labels, minlength=4).tolist() == [6, 1, 1, 0]
    assert np.bincount(train.labels, minlength=4).tolist() == [24, 6, 2, 1]
    assert not files(train) & files(test) and len(files(train) | files(test)) == 41
    assert all(Path(file).parts[0] == kind for file, kind in contents(train) + contents(test))


def test_the_order_depends_on_the_paths_alone(tmp_path):
    names = [f"{kind}/{number}.jpg" for kind in ("ant", "bee") for number in range(20)]
    write(tmp_path / "one", *names)
    write(tmp_path / "two", *reversed(names))
    os.utime(tmp_path / "two" / "ant" / "3.jpg", (0, 0))
    first = contents(opened(tmp_path / "one"))
    assert contents(opened(tmp_path / "two")) == first == contents(opened(tmp_path / "one"))
    # Classes are mixed, and adding images does not change the order of the others.
    assert sum(a[1] != b[1] for a, b in itertools.pairwise(first)) > 8
    write(tmp_path / "two", "cow/1.jpg")
    assert [each for each in contents(opened(tmp_path / "two")) if each[1] != "cow"] == first


def test_images_in_deeper_folders_belong_to_their_class(tmp_path):
    write(tmp_path / "a", "cat/1.jpg", "cat/wild/african/2.jpg", "dog/3.jpg", "dog/4.jpg", "cat/5.jpg")
    assert set(contents(opened(tmp_path / "a", "train+test"))) == {
        ("cat/1.jpg", "cat"),
        ("cat/wild/african/2.jpg", "cat"),
        ("cat/5.jpg", "cat"),
        ("dog/3.jpg", "dog"),
        ("dog/4.jpg", "dog"),
    }
    write(tmp_path / "b", "train/cat/wild/1.jpg", "train/dog/2.jpg")
    assert set(contents(opened(tmp_path / "b"))) == {("train/cat/wild/1.jpg", "cat"), ("train/dog/2.jpg", "dog")}


def test_hidden_files_and_files_that_are_not_images_are_left_out(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/cat/._1.jpg", "train/cat/.hidden/2.jpg", "train/cat/3.txt")
    write(tmp_path, "train/cat/Thumbs.db", "train/dog/4.jpg", "train/.git/5.jpg", ".cache/cat/6.jpg", "README.jpg")
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "cat" / "folder.jpg").mkdir()
    train = opened(tmp_path)
    assert train.class_names == ("cat", "dog") and files(train) == {"train/cat/1.jpg", "train/dog/4.jpg"}


def test_extensions_may_be_in_upper_case(tmp_path):
    extensions = ["jpg", "JPEG", "Png", "BMP", "gif", "WebP", "TIF", "tiff"]
    write(tmp_path, *(f"train/{kind}/1.{extension}" for kind in ("a", "b") for extension in extensions))
    assert len(opened(tmp_path)) == 2 * len(extensions)


def test_names_may_be_unusual(tmp_path):
    latin, words = os.fsdecode(b"caf\xe9"), "two words, [a+b] 100%"
    names = [f"train/{latin}/{latin}.jpg", f"train/{words}/ 1 .jpg", "train/写真/'2'.jpg", "train/-rf/3\n.jpg"]
    try:
        write(tmp_path, *names)
    except OSError:
        pytest.skip("this file system takes no such names")
    train = opened(tmp_path)
    assert dict(contents(train)) == dict(zip(names, ["caf\\xe9", words, "写真", "-rf"], strict=True))
    described = [train.describe(index) for index in range(4)]
    assert str(tmp_path / "train" / words / " 1 .jpg") in described
    assert f"{tmp_path}/train/caf\\xe9/caf\\xe9.jpg" in described
    "".join(described).encode()  # can be printed


def test_a_split_may_have_an_unusual_name(tmp_path):
    for split in ("my split", "a+b", "x[1]", "all"):
        write(tmp_path, f"{split}/cat/1.jpg", f"{split}/dog/2.jpg")
    write(tmp_path, "my split/cat/3.jpg", "my split/cat/4.jpg")
    sources = open_splits(f"folder:{tmp_path}")
    assert {split: len(source) for split, source in sources.items()} == {
        "my split": 4,
        "a+b": 2,
        "x[1]": 2,
        "all": 2,
    }
    for split, source in sources.items():
        assert contents(opened(tmp_path, split)) == contents(source)
    assert contents(opened(tmp_path, "my split[:50%]")) == contents(sources["my split"])[:2]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere", "1.jpg", "deeper/2.jpg")
    path = write(tmp_path / "set", "train/dog/3.jpg")
    (path / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    (path / "train" / "dog" / "4.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (path / "train" / "dog" / "again").symlink_to(path / "train" / "dog")
    linked = tmp_path / "linked"
    linked.symlink_to(path)
    expected = {("1.jpg", "cat"), ("deeper/2.jpg", "cat"), ("train/dog/3.jpg", "dog"), ("1.jpg", "dog")}
    for each in (path, linked):
        assert len(opened(each)) == 4 and set(contents(opened(each))) == expected


def test_a_class_may_be_missing_from_a_split(tmp_path):
    write(tmp_path, "train/bee/1.jpg", "train/cow/2.jpg", "test/ant/3.jpg", "test/cow/4.jpg")
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert train.class_names == test.class_names == ("ant", "bee", "cow")
    assert sorted(train.labels) == [1, 2] and sorted(test.labels) == [0, 2]


def test_an_image_directly_in_a_split_does_not_make_it_a_class(tmp_path):
    write(tmp_path, "train/overview.jpg", "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg")
    assert files(opened(tmp_path)) == {"train/cat/1.jpg", "train/dog/2.jpg"}


def test_images_without_a_class_beside_the_splits_are_left_out(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "unlabelled/3.jpg")
    assert opened(tmp_path).class_names == ("cat", "dog")
    assert files(opened(tmp_path)) == {"train/cat/1.jpg", "train/dog/2.jpg"}


def test_a_class_may_be_named_like_a_split(tmp_path):
    write(tmp_path, *(f"{kind}/{number}.jpg" for kind in ("car", "train") for number in range(5)))
    assert opened(tmp_path, "test").class_names == ("car", "train") and len(opened(tmp_path, "test")) == 2


def test_parts_of_splits(tmp_path):
    write(tmp_path, *(f"{split}/{kind}/{n}.jpg" for split in ("train", "test") for kind in "ab" for n in range(10)))
    train, test = contents(opened(tmp_path)), contents(opened(tmp_path, "test"))
    for split, expected in {
        "train[:50%]": train[:10],
        "train[50%:]": train[10:],
        "train[3:7]": train[3:7],
        "train[-2:]": train[-2:],
        "train+test": train + test,
        "train[:2] + test[18:]": train[:2] + test[18:],
        "all": test + train,
    }.items():
        assert contents(opened(tmp_path, split)) == expected, split


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", r"has no split 'trian'; did you mean train\?"),
        ("validation", "has no split 'validation'; it has test, train"),
        ("", "has no split ''; it has test, train"),
        ("train[:", r"has no part 'train\[:': its split has 2 images; write for example train\[:50%\]"),
        ("train[5:9]", r"has no part 'train\[5:9\]': its split has 2 images"),
        ("train+test[3:4]", r"has no part 'test\[3:4\]': its split has 2 images"),
        ("train[1:1]", r"split 'train\[1:1\]' of data set folder:.* is empty"),
    ],
)
def test_missing_and_empty_splits_are_errors(tmp_path, split, message):
    write(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg", "test/dog/4.jpg")
    with pytest.raises(UserError, match=message) as raised:
        opened(tmp_path, split)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.jpg", "cat/2.jpg"], "holds only the class 'cat'; it must hold a folder of images for each class"),
        (["train/cat/1.jpg", "test/cat/2.jpg"], "holds only the class 'cat'"),
        (["1.jpg", "2.jpg"], "holds no images in class folders; 2 images lie directly in .*, such as [12].jpg"),
        (["train/1.jpg", "test/2.jpg"], "1 image lies directly in test .* 1 image lies directly in train"),
        (["cat/1.txt", "dog/2.txt"], "holds no images"),
        ([], "holds no images"),
    ],
)
def test_folders_that_are_not_a_dataset_are_errors(tmp_path, names, message):
    write(tmp_path, *names)
    with pytest.raises(UserError, match=message) as raised:
        opened(tmp_path)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("name", ["folder:", "folder:."])
def test_a_name_without_a_folder_is_not_the_current_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(write(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg"))
    if name == "folder:.":
        assert len(open_source(name, "train")) == 2
    else:
        with pytest.raises(UserError, match="names no folder; write folder:PATH"):
            open_source(name, "train")


@pytest.mark.parametrize("name", ["nowhere", "deep/er", "file.jpg", "~no such user/images"])
def test_a_missing_folder_is_named_by_its_whole_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "file.jpg")
    with pytest.raises(UserError) as raised:
        open_source(f"folder:{name}", "train")
    assert str(tmp_path / name) in str(raised.value) and "PATH" not in str(raised.value)
    assert ("is a file" in str(raised.value)) == (name == "file.jpg")


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "set/train/cat/1.jpg", "set/train/dog/2.jpg")
    assert len(open_source("folder:~/set", "train")) == 2


def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(tmp_path, monkeypatch):
    write(tmp_path, "train/cat/1.jpg", "train/cat/wild/2.jpg", "train/dog/3.jpg", "train/emu/4.jpg")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("wild"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot look through .*: Permission denied: .*train/cat/wild"):
        opened(tmp_path)


def test_a_file_that_cannot_be_read_is_a_bad_image(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg")
    (tmp_path / "train" / "dog" / "3.jpg").symlink_to(tmp_path / "gone.jpg")
    source = opened(tmp_path)
    (tmp_path / "train" / "cat" / "1.jpg").unlink()
    found = dict(zip(map(source.describe, range(3)), source.read(source.items(range(3))), strict=True))
    assert found.pop(str(tmp_path / "train" / "dog" / "2.jpg")) == (b"train/dog/2.jpg", 1)
    assert sorted(label for _, label in found.values()) == [0, 1]
    for encoded, _ in found.values():
        assert isinstance(encoded, BadImage) and str(encoded) == "cannot be read: No such file or directory"


def test_a_folder_is_sent_to_another_process_without_its_list(tmp_path):
    write(tmp_path, *(f"train/{kind}/{number:04}.jpg" for kind in "ab" for number in range(500)))
    source = opened(tmp_path)
    sent = pickle.dumps(source)
    assert len(sent) < 2000 and len(source) == 1000
    copy = pickle.loads(sent)
    assert len(copy) == 0 and copy.class_names == ("a", "b")
    items = source.items([3, 999, 3])
    assert copy.read(items) == source.read(items)
    assert [content for content, _ in copy.read(items)] == [
        os.fsencode(os.path.relpath(source.describe(index), tmp_path)) for index in (3, 999, 3)
    ]
