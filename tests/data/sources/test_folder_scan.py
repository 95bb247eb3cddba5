"""What is found in untidy folders, what the user is told about it, and what to write if something is missing."""

import io
import os
import shlex
import unicodedata

import cv2
import numpy as np
import pytest
import rich.console

from flaxcnn import UserError
from flaxcnn.commands.main import main
from flaxcnn.data.decoding.images import decode
from flaxcnn.data.sources.opening import open_source, open_splits, refuse_data_dir
from flaxcnn.training.loop import fit

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
# The extension for which OpenCV writes each format, and the extensions that such files have.
EXTENSIONS = {
    ".jpg": ("jpg", "JPG", "jpeg", "jpe", "jfif", "Jfif"),
    ".png": ("png", "PNG"),
    ".bmp": ("bmp", "dib"),
    ".webp": ("webp",),
    ".tiff": ("tif", "tiff"),
    ".ppm": ("ppm", "pnm"),
    ".pgm": ("pgm",),
    ".pbm": ("pbm",),
    ".gif": ("gif",),
    ".pfm": ("pfm",),
}


def encoded(kind):
    image = IMAGE if kind not in (".pgm", ".pbm") else IMAGE[..., 0]
    return cv2.imencode(kind, np.float32(image) / 255 if kind == ".pfm" else image)[1].tobytes()


def write(path, *files, content=None):
    """Writes files with a content; the default is an image."""
    for file in files:
        target = path / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(".png") if content is None else content)
    return path


def notes(path):
    (found, *_) = open_splits(f"folder:{path}").values()
    assert all("\n" not in note and len(note) < 400 for note in found.notes)
    return "\n".join(found.notes)


def refusal(path, split="train"):
    with pytest.raises(UserError) as raised:
        open_source(f"folder:{path}", split)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# What counts as an image


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_each_extension_is_known_and_each_content_without_one(tmp_path, kind):
    names = [f"1.{extension}" for extension in EXTENSIONS[kind]]
    names += [f"2.{extension.swapcase()}" for extension in EXTENSIONS[kind]]
    names += ["no extension", "strange.xyz", "photo.jpg (1)", "2024.05.01", "wrong.txt"]
    write(tmp_path, *(f"train/{kind}/{name}" for kind in "ab" for name in names), content=encoded(kind))
    source = open_source(f"folder:{tmp_path}", "train")
    assert len(source) == 2 * len(names)
    assert "left out" not in notes(tmp_path)
    for content, _ in source.read(source.items(range(len(source)))):
        assert decode(content, 3).shape == (6, 5, 3)


def test_files_that_are_not_images_are_left_out_and_listed(tmp_path):
    write(tmp_path, *(f"{kind}/{number}.png" for kind in "ab" for number in range(3)))
    write(tmp_path, "a/notes.txt", "a/more.TXT", "a/README", "labels.csv", content=b"P5 is what, and BM, too; GIF")
    write(tmp_path, "a/Thumbs.db", content=bytes(512))
    write(tmp_path, "b/empty", content=b"")
    write(tmp_path, "a/.DS_Store", "b/._1.png", ".git/a/1.png", "b/.ipynb_checkpoints/2.png")
    os.mkfifo(tmp_path / "b" / "pipe")
    (tmp_path / "b" / "broken").symlink_to(tmp_path / "gone")
    said = notes(tmp_path)
    assert "images: train 4, test 2" in said
    for part in (
        "2 .txt (a/",
        "1 .csv (labels.csv)",
        "1 .db (a/Thumbs.db)",
        "4 without an extension (",
        "4 hidden (",
    ):
        assert part in said


def test_of_many_kinds_of_files_the_rarest_are_only_counted(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    for number in range(9):
        write(tmp_path, *(f"a/{index}.x{number}" for index in range(20 - number)), content=b"text")
    assert "20 .x0 (a/" in notes(tmp_path) and "54 of 4 other kinds" in notes(tmp_path)


def test_a_folder_without_images_is_not_a_class_and_is_listed(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    write(tmp_path, "train/d/notes.txt", content=b"none yet")
    (tmp_path / "train" / "e" / "deeper").mkdir(parents=True)
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.class_names == ("a", "b")
    assert "without images, so not a class: train/d, train/e" in notes(tmp_path)


def test_images_outside_of_class_folders_are_counted(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "train/overview.png")
    write(tmp_path, "1.png", "2", "unsorted/3.png")
    said = notes(tmp_path)
    assert "left out: 2 images that lie directly in" in said
    assert "1 image that lies directly in train and in no class folder, such as train/overview.png" in said
    assert "1 image that lies directly in unsorted" in said


def test_images_in_deeper_folders_are_listed(tmp_path):
    write(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "pets/Cat/1.png", "pets/Dog/2.png", "pets/3.png")
    assert "of class pets, 2 of 3 images lie in folders below it, such as pets/Cat/1.png" in notes(tmp_path)


# Classes of one split


@pytest.mark.parametrize(
    ("one", "other"),
    [("dog", "Dog"), ("dog", "dog "), ("golden retriever", "golden_retriever"), ("daisy", "dasiy"), ("ß", "ss")],
)
def test_similar_names_in_different_splits_are_named_together(tmp_path, one, other):
    write(tmp_path, f"train/{one}/1.png", "train/cat/1.png", f"test/{other}/1.png", "test/cat/1.png")
    assert open_source(f"folder:{tmp_path}", "test").class_names == tuple(sorted(["cat", one, other]))
    (warning,) = [line for line in notes(tmp_path).splitlines() if "warning" in line]
    assert f"'{one}'" in warning and f"'{other}'" in warning and "train" in warning and "test" in warning


def test_names_that_look_alike_are_told_apart(tmp_path):
    composed, combining = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write(tmp_path, f"train/{composed}/1.png", "train/a/1.png", f"test/{combining}/1.png", "test/a/1.png")
    if (tmp_path / "train" / combining).exists():
        pytest.skip("this file system treats both as one name")
    assert "caf\\xe9" in notes(tmp_path) and "cafe\\u0301" in notes(tmp_path)


def test_classes_of_only_one_split_are_listed(tmp_path):
    write(tmp_path, "train/a/1.png", "train/zebra/1.png", "test/a/1.png", *(f"test/{n:03}/1.png" for n in range(9)))
    said = notes(tmp_path)
    assert "class only in train: zebra" in said
    assert "classes only in test: 000, 001, 002, 003, 004 and 4 more" in said
    assert "test 10 of 10 classes, train 2 of 2 classes" in said


def test_a_tidy_folder_takes_one_line(tmp_path):
    write(tmp_path, *(f"{split}/{kind}/1.png" for split in ("train", "val") for kind in "ab"))
    assert notes(tmp_path) == f"folder:{tmp_path} holds 2 classes; images: train 2, val 2"


# Missing splits and classes


@pytest.mark.parametrize("split", ["val", "validation", "test"])
@pytest.mark.parametrize("asked", ["itself", "another"])
def test_a_split_with_images_but_no_class_folders_is_explained(tmp_path, split, asked):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", *(f"{split}/{number}" for number in range(7)))
    said = refusal(tmp_path, split if asked == "itself" else "testing")
    assert f"7 images lie directly in {split} and in no class folder, such as {split}/" in said
    assert "--config.data.test_split='train[80%:]'" in said
    assert f"7 images that lie directly in {split}" in notes(tmp_path)


def test_an_empty_split_is_reported(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png")
    (tmp_path / "val").mkdir()
    assert "val holds no images" in refusal(tmp_path, "val") and "not a class: val" in notes(tmp_path)


@pytest.mark.parametrize(
    ("places", "home"),
    [
        (["PetImages/Cat", "PetImages/Dog"], "PetImages"),
        (["two words/PetImages/Cat", "two words/PetImages/Dog"], "two words/PetImages"),
        (["archive/train/cat", "archive/train/dog", "archive/test/cat", "archive/test/dog"], "archive"),
        (["images/a", "images/b", "images/c"], "images"),
        (["a/b/c/cat", "a/b/c/dog"], "a/b/c"),
    ],
)
def test_class_folders_that_lie_deeper_are_found(tmp_path, places, home):
    write(tmp_path, *(f"{place}/{number}.png" for place in places for number in range(5)))
    write(tmp_path, "annotations/1.xml", "README.md", content=b"text")
    said = refusal(tmp_path)
    assert f"write {shlex.quote(f'--config.data.name=folder:{tmp_path}/{home}')}" in said
    assert len(open_source(f"folder:{tmp_path}/{home}", "train")) > 1


def test_class_folders_that_lie_deeper_within_splits_are_found(tmp_path):
    write(tmp_path, *(f"{split}/images/{kind}/1.png" for split in ("train", "test") for kind in ("cat", "dog")))
    said = refusal(tmp_path)
    assert "class folders lie in test/images, train/images: move them up" in said


def test_a_class_folder_names_the_one_above_it(tmp_path):
    write(tmp_path, *(f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(3)))
    assert f"--config.data.name=folder:{tmp_path}" in refusal(tmp_path / "cat")
    assert f"--config.data.name=folder:{tmp_path}/cat" not in refusal(tmp_path / "cat")


def test_the_names_of_splits_may_be_in_upper_case(tmp_path):
    write(tmp_path, "Train/cat/1.png", "Train/dog/1.png", "TEST/cat/1.png", "TEST/dog/1.png", "extra/1.png")
    assert set(open_splits(f"folder:{tmp_path}")) == {"Train", "TEST"}
    assert "did you mean Train?" in refusal(tmp_path)


# Names


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"\xff\xfe", b"a\nb", "写真".encode(), b"$\\frac$", b'it\'s "q"', b":dog:"]
)
def test_names_of_any_bytes_can_be_printed(tmp_path, name):
    name = os.fsdecode(name)
    try:
        write(tmp_path, f"{name}/train/{name}/{name}.png", f"{name}/train/cat/1.png", f"{name}/test/cat/2.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    write(tmp_path / name / "train" / "cat", f".{name}", f"{name}.{name}", name, content=b"text")
    path = tmp_path / name
    source = open_source(f"folder:{path}", "train")
    assert len(source) == 2 and len(set(source.class_names)) == 2
    "".join((notes(path), *source.class_names, refusal(path, name), refusal(path, "val"))).encode()
    assert not any("\n" in kind for kind in source.class_names)
    assert all(isinstance(content, bytes) for content, _ in source.read(source.items(range(2))))


# What a folder of images would ignore


@pytest.mark.parametrize("flag", ["--data-dir", "--config.data.data_dir"])
def test_a_folder_of_prepared_sets_is_refused_beside_a_folder_of_images(flag):
    with pytest.raises(
        UserError, match=f"{flag} is where prepared sets lie, and folder:pets is read where it lies"
    ):
        refuse_data_dir("folder:pets", "/sets", flag)
    for name, data_dir in (("mnist", "/sets"), ("folder:pets", None), ("folder:pets", "")):
        refuse_data_dir(name, data_dir, flag)


@pytest.fixture
def odd_set(tmp_path, config):
    """A folder with an empty class, a hidden file, and a name that is spelled in two ways."""
    write(tmp_path / "set", *(f"{split}/{kind}/1" for split in ("train", "test") for kind in ("a", "b", "写真")))
    write(tmp_path / "set", "train/c/2.png", "train/a/.hidden", "test/C/3.png")
    config.data.name, config.data.data_dir = f"folder:{tmp_path / 'set'}", None
    config.batch_size, config.duration = 4, "1 steps"
    said = notes(tmp_path / "set")
    assert "holds 5 classes" in said and "1 hidden" in said and "class 'C' is only in test" in said
    return said


def test_a_run_and_prepare_print_what_they_found(odd_set, tmp_path, config, capsys):
    assert main(["prepare", config.data.name]) == 0
    assert odd_set in capsys.readouterr().out
    shown = io.StringIO()
    config.data.crop, config.data.loading = "random_resized", "memory"  # which do not go together
    with pytest.raises(UserError, match="decodes images anew"):
        fit(config, tmp_path / "run", console=rich.console.Console(file=shown, width=80))
    assert odd_set in shown.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")  # of the class 写真, in plots
def test_evaluation_prints_what_it_found(odd_set, tmp_path, config, capsys):
    fit(config, tmp_path / "run", console=rich.console.Console(quiet=True))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert odd_set in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--data-dir", str(tmp_path)]) == 2
    assert "--data-dir is where prepared sets lie" in capsys.readouterr().err


def test_a_run_and_prepare_refuse_a_folder_of_prepared_sets_before_anything_is_made(tmp_path, config, capsys):
    write(tmp_path / "set", *(f"{kind}/{number}.png" for kind in "ab" for number in range(5)))
    config.data.name = f"folder:{tmp_path / 'set'}"
    with pytest.raises(UserError, match=r"--config\.data\.data_dir is where prepared sets lie"):
        fit(config, tmp_path / "run", console=rich.console.Console(quiet=True))
    assert not (tmp_path / "run").exists()
    assert main(["prepare", config.data.name, "--data-dir", str(tmp_path)]) == 2
    assert "--data-dir is where prepared sets lie" in capsys.readouterr().err
