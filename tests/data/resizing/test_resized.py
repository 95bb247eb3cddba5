"""Resized sets: the images that PIL makes of the same originals, in the same order, and nothing half-written."""

import concurrent.futures
import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from flaxcnn import UserError
from flaxcnn.data.decoding import crops
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.resizing import builder as resized_builder
from flaxcnn.data.resizing import workers as resize_workers
from flaxcnn.data.resizing.image import resize_to_jpeg
from flaxcnn.data.resizing.resized import prepare_resized
from flaxcnn.data.sources.opening import open_source, open_splits
from flaxcnn.data.tfds import preparation
from tests.conftest import ROOT
from tests.images import jpeg, photograph, write_folder

SIDE = 48


def write_unusual_images(path):
    """Writes an image of each kind that a folder may hold beside plain JPEGs."""
    image = Image.fromarray(photograph("flower")[100:220, 50:250])  # 200x120
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    image.save(path / "turned.jpg", exif=exif)
    image.convert("L").save(path / "gray.jpg")
    image.convert("CMYK").save(path / "print.jpg")
    image.convert("L").convert("1").save(path / "ink.png")
    image.resize((75, 47)).save(path / "small.jpg", quality=30)
    image.resize((SIDE, 70)).save(path / "exact.png")
    image.resize((500, 49)).save(path / "wide.png")
    transparent = image.convert("RGBA")
    transparent.putalpha(128)
    transparent.save(path / "transparent.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_folder(tmp_path_factory.mktemp("images") / "My Photos, 2nd ed.", 12, height=90, width=120)
    write_unusual_images(path / "flower")
    return path


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """The set that several processes have made of the folder."""
    data_dir = tmp_path_factory.mktemp("sets")
    outcome = prepare_resized(f"folder:{folder}", str(data_dir), side=SIDE)
    assert not outcome.existed and outcome.left_out == []
    return data_dir, outcome.builder


@pytest.fixture
def in_this_process(monkeypatch):
    """Threads in place of processes, which take seconds to start."""

    @contextlib.contextmanager
    def pool(sources):
        monkeypatch.setattr(resize_workers, "_sources", sources)
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            yield threads

    monkeypatch.setattr(resize_workers, "open_pool", pool)


def records(source):
    return source.read(source.items(range(len(source))))


def by_pil(encoded, side):
    """The image upright, in color and scaled, by PIL alone."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if image.mode == "RGBA":
        image = Image.fromarray(np.asarray(image)[..., :3])
    image = image.convert("RGB")
    width, height = image.size
    if min(width, height) > side:
        scale = side / min(width, height)
        image = image.resize((int(width * scale + 1e-9), int(height * scale + 1e-9)), Image.Resampling.BILINEAR)
    return image


def test_images_are_those_that_pil_scales_compressed(folder, prepared):
    data_dir, builder = prepared
    reference = io.BytesIO()
    Image.new("RGB", (8, 8)).save(reference, "JPEG", quality=95)
    tables = Image.open(reference).quantization
    seen = {}
    for split, original in open_splits(f"folder:{folder}").items():
        source = open_source(builder.name, split, str(data_dir))
        assert source.class_names == original.class_names and len(source) == len(original)
        for index, ((encoded, label), (before, its_label)) in enumerate(
            zip(records(source), records(original), strict=True)
        ):
            stored, expected = Image.open(io.BytesIO(encoded)), by_pil(before, SIDE)
            assert stored.format == "JPEG" and stored.mode == "RGB" and stored.quantization == tables
            assert not stored.getexif()
            assert label == its_label and stored.size == expected.size
            error = np.abs(np.asarray(stored, int) - np.asarray(expected, int)).mean()
            seen[original.describe(index).split("/")[-1]] = (stored.size, error)
    sizes = {name: size for name, (size, _) in seen.items()}
    assert sizes["turned.jpg"] == (SIDE, 80) and sizes["gray.jpg"] == sizes["print.jpg"] == (80, SIDE)
    assert sizes["small.jpg"] == (75, 47) and sizes["exact.png"] == (SIDE, 70) and sizes["wide.png"] == (489, SIDE)
    errors = {name: error for name, (_, error) in seen.items() if name != "ink.png"}  # all edges
    assert max(errors.values()) < 5 and np.mean(list(errors.values())) < 3


def test_evaluation_sees_the_same_but_for_the_compression(folder, prepared):
    data_dir, builder = prepared
    original = open_source(f"folder:{folder}", "train")
    source = open_source(builder.name, "train", str(data_dir))
    differences = [
        np.abs(crops.decode_center_square(a, 3, SIDE).astype(int) - crops.decode_center_square(b, 3, SIDE)).mean()
        for (a, _), (b, _) in zip(records(original), records(source), strict=True)
    ]
    assert np.median(differences) < 3


def test_the_set_is_one_of_tfds(folder, prepared):
    data_dir, builder = prepared
    assert builder.name == f"my_photos_2nd_ed_{SIDE}" and builder.info.description.startswith(f"folder:{folder}, ")
    read = tfds.builder(builder.name, data_dir=data_dir)
    assert isinstance(read, tfds.core.read_only_builder.ReadOnlyBuilder)
    assert read.info.features["label"].names == ["flower", "temple", "upside_down"]
    assert {name: split.num_examples for name, split in read.info.splits.items()} == {"train": 36, "test": 8}
    examples = read.as_data_source("train")
    for example, (_, label) in zip(examples, records(open_source(f"folder:{folder}", "train")), strict=True):
        assert example["image"].dtype == np.uint8 and example["image"].shape[2] == 3
        assert example["label"] == label
    assert len(open_source(builder.name, "train[:50%]", str(data_dir))) == 18


def test_preparing_again_does_nothing(folder, prepared):
    data_dir, builder = prepared
    before = sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*"))
    moved = folder.with_name("moved")
    folder.rename(moved)  # the images may be gone
    try:
        outcome = prepare_resized(f"folder:{folder}", str(data_dir), side=SIDE, bad_images="skip")
    finally:
        moved.rename(folder)
    assert outcome.existed and outcome.builder.data_path == builder.data_path
    assert sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*")) == before


def test_a_mistyped_name_is_corrected(prepared):
    data_dir, builder = prepared
    with pytest.raises(UserError, match=rf"unknown data set 'my_photos_2nd_ed_84'; did you mean {builder.name}\?"):
        open_source("my_photos_2nd_ed_84", "train", str(data_dir))


def test_a_resized_set_that_is_missing_says_how_to_make_it(tmp_path):
    command = f"python -m flaxcnn prepare imagenet2012 --resize 256 --data-dir {tmp_path}"
    with pytest.raises(UserError, match=f"unknown data set 'imagenet2012_256'; to make it, run: {command}$"):
        open_source("imagenet2012_256", "train", str(tmp_path))
    (tmp_path / "imagenet2012_256" / "5.1.0").mkdir(parents=True)
    (tmp_path / "imagenet2012_256" / "5.1.0" / "dataset_info.json").touch()
    with pytest.raises(UserError, match="unknown data set 'imagenet2012_265'; did you mean imagenet2012_256"):
        open_source("imagenet2012_265", "train", str(tmp_path))


class Scenery(tfds.core.GeneratorBasedBuilder):
    """Gray photographs, those of `wide-angle` all of one size; the last split has no labels."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="Wide-angle.v2", version="2.1.0"),
        tfds.core.BuilderConfig(name="portrait", version="1.0.0"),
    ]

    def _info(self):
        shape = (60, 80, 1) if self.builder_config.name != "portrait" else (None, None, 1)
        features = {"photo": tfds.features.Image(shape=shape), "place": tfds.features.ClassLabel(names=["b", "a"])}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("photo", "place")
        )

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples(10, 1), "unlabelled": self._generate_examples(3, -1)}

    def _generate_examples(self, count, label):
        for number in range(count):
            gray = cv2.cvtColor(photograph("temple")[number : number + 60, :80], cv2.COLOR_RGB2GRAY)
            encoded = io.BytesIO(cv2.imencode(".png", gray)[1])
            yield number, {"photo": encoded, "place": min(label, number % 2)}


def test_a_tfds_set_keeps_configuration_version_and_missing_labels(tmp_path, in_this_process):
    outcome = prepare_resized("scenery:2.1.0", str(tmp_path), side=30)  # is prepared first
    builder = outcome.builder
    assert builder.info.full_name == "scenery_wide_angle_v2_30/2.1.0"
    assert builder.info.features["image"].shape == (30, 40, 3) and builder.info.features["label"].names == [
        "b",
        "a",
    ]
    before, after = open_splits("scenery", str(tmp_path)), open_splits(builder.name, str(tmp_path))
    assert before.keys() == after.keys() == {"validation", "unlabelled"}
    for split in before:
        pairs = list(zip(records(before[split]), records(after[split]), strict=True))
        assert [label for (_, label), _ in pairs] == [label for _, (_, label) in pairs]
        for (a, _), (b, _) in pairs:
            image = np.asarray(Image.open(io.BytesIO(b)), int)
            assert image.shape == (30, 40, 3) and np.abs(image - np.asarray(by_pil(a, 30), int)).mean() < 5
    assert {label for _, label in records(after["unlabelled"])} == {-1}
    assert prepare_resized("scenery/Wide-angle.v2", str(tmp_path), side=30).existed
    # The folder of the original may go; a resized set can be resized once more.
    shutil.rmtree(tmp_path / "scenery")
    assert prepare_resized("scenery", str(tmp_path), side=30).existed
    again = prepare_resized(builder.name, str(tmp_path), side=20).builder
    assert again.info.full_name == "scenery_wide_angle_v2_30_20/2.1.0"


@pytest.mark.parametrize("name", ["digits", "cifar10", "scenery"])
def test_small_images_of_one_size_are_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(UserError, match=f"the images of {name} have .* pixels: there is nothing to resize to 60"):
        prepare_resized(name, str(tmp_path / "sets"), side=60)
    assert not (tmp_path / "sets").exists()


def test_small_images_of_any_size_are_refused_and_nothing_is_left(folder, tmp_path, in_this_process):
    with pytest.raises(UserError, match=r"no image of folder:.* has a shorter side above 120 pixels: there is"):
        prepare_resized(f"folder:{folder}", str(tmp_path / "sets"), side=120)
    assert not (tmp_path / "sets").exists()


@pytest.fixture
def damaged(tmp_path):
    """A folder with splits in which three images cannot be read."""
    for split, count in (("train", 20), ("test", 4)):
        write_folder(tmp_path / "damaged" / split, count, ("temple", "flower"))
    train = tmp_path / "damaged" / "train"
    whole = (train / "temple" / "3.jpg").read_bytes()
    (train / "temple" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "flower" / "0.jpg").write_bytes(b"")
    (train / "flower" / "7.jpg").write_bytes(b"<html>")
    return tmp_path / "damaged"


def test_the_first_bad_image_stops_and_nothing_is_left(damaged, tmp_path, in_this_process):
    source = open_source(f"folder:{damaged}", "train")
    order = [source.describe(index) for index in range(len(source))]
    bad = [damaged / "train" / name for name in ("temple/3.jpg", "flower/0.jpg", "flower/7.jpg")]
    first = min(map(str, bad), key=order.index)
    with pytest.raises(UserError, match=f"^{first}: .*; --bad-images skip leaves out what cannot be read$"):
        prepare_resized(f"folder:{damaged}", str(tmp_path / "sets"), side=40)
    assert not (tmp_path / "sets").exists()


def test_bad_images_are_left_out_and_the_others_stay_in_order(damaged, tmp_path, in_this_process):
    outcome = prepare_resized(f"folder:{damaged}", str(tmp_path / "sets"), side=40, bad_images="skip")
    empty, text, half = sorted(outcome.left_out)
    assert empty == f"{damaged}/train/flower/0.jpg: empty file"
    assert text.startswith(f"{damaged}/train/flower/7.jpg: neither JPEG nor ")
    assert half == f"{damaged}/train/temple/3.jpg: truncated"
    original = open_source(f"folder:{damaged}", "train")
    left_out = {line.split(": ")[0] for line in outcome.left_out}
    kept = [item for index, item in enumerate(records(original)) if original.describe(index) not in left_out]
    after = records(open_source("damaged_40", "train", str(tmp_path / "sets")))
    assert len(after) == 37
    for (encoded, label), (before, its_label) in zip(after, kept, strict=True):
        image, expected = Image.open(io.BytesIO(encoded)), by_pil(before, 40)
        assert label == its_label and np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 6


def test_a_split_with_only_bad_images_is_an_error(damaged, tmp_path, in_this_process):
    for path in (damaged / "test").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=f"no image of split 'test' of folder:{damaged} can be read"):
        prepare_resized(f"folder:{damaged}", str(tmp_path / "sets"), side=40, bad_images="skip")
    assert not (tmp_path / "sets").exists()


def test_many_images_are_written_to_several_shards(damaged, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setattr(resized_builder, "SHARD_PIXELS", 4 * 40**2)
    monkeypatch.setattr(resized_builder, "CHUNK", 3)
    monkeypatch.setattr(resized_builder, "available_cores", lambda: 1)  # tasks must wait for one another
    source = open_source(f"folder:{damaged}", "train")
    for index in range(4, 8):  # all of the second shard
        (tmp_path / source.describe(index)).write_bytes(b"")
    outcome = prepare_resized(f"folder:{damaged}", str(tmp_path / "sets"), side=40, bad_images="skip")
    lengths = outcome.builder.info.splits["train"].shard_lengths
    assert len(lengths) == 10 and lengths[1] == 0 and max(lengths) == 4
    assert len(list(outcome.builder.data_path.glob("damaged_40-train.array_record-*-of-00010"))) == 10
    left_out = {line.split(": ")[0] for line in outcome.left_out}
    kept = [label for index, (_, label) in enumerate(records(source)) if source.describe(index) not in left_out]
    after = open_source("damaged_40", "train", str(tmp_path / "sets"))
    assert [label for _, label in records(after)] == kept and sum(lengths) == len(kept)


def test_a_set_of_the_same_name_made_of_other_images_is_an_error(folder, prepared, tmp_path):
    data_dir, builder = prepared
    other = write_folder(tmp_path / folder.name, 2)
    with pytest.raises(UserError, match=f"{builder.data_path} was made of folder:{folder}, not of folder:{other};"):
        prepare_resized(f"folder:{other}", str(data_dir), side=SIDE)


@pytest.mark.parametrize("kind", [" cat", "cat ", " "])
def test_class_names_that_tfds_would_change_are_refused(tmp_path, kind):
    path = write_folder(tmp_path / "set", 2, ("temple", "flower"))
    try:
        (path / "flower").rename(path / kind)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(UserError, match=r"a data set cannot store the class name '.*'; rename its folder"):
        prepare_resized(f"folder:{path}", str(tmp_path / "sets"), side=40)
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize(
    ("kind", "stored"), [("c\nat", r"c\nat"), (os.fsdecode(b"c\xe9"), r"c\xe9"), ("写真", "写真")]
)
def test_class_names_of_any_bytes_are_stored_as_they_are_printed(tmp_path, in_this_process, kind, stored):
    path = write_folder(tmp_path / "set", 2, ("temple", "flower"))
    try:
        (path / "flower").rename(path / kind)
    except OSError:
        pytest.skip("this file system takes no such names")
    builder = prepare_resized(f"folder:{path}", str(tmp_path / "sets"), side=40).builder
    assert builder.info.features["label"].names == sorted([stored, "temple"])


@pytest.mark.parametrize(
    ("name", "expected"), [("2024", "pictures_2024_40"), ("写真", "pictures_40"), ("Über_Cats-1", "ber_cats_1_40")]
)
def test_names_of_folders_become_names_of_sets(tmp_path, in_this_process, monkeypatch, name, expected):
    write_folder(tmp_path / name, 2, ("temple", "flower"))
    monkeypatch.chdir(tmp_path / name)
    assert prepare_resized("folder:.", str(tmp_path / "sets"), side=40).builder.name == expected


def test_the_name_of_a_set_of_tfds_is_refused(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "plant leaves", 2)
    monkeypatch.setattr(tfds, "list_builders", lambda **_: ["plant_leaves_40"])
    with pytest.raises(UserError, match="plant_leaves_40 is a data set of TFDS's own; give the folder"):
        prepare_resized(f"folder:{path}", str(tmp_path / "sets"), side=40)


def test_another_process_that_prepares_the_set_is_an_error(damaged, tmp_path, in_this_process):
    target = tmp_path / "sets" / "damaged_40"
    target.mkdir(parents=True)
    lock = os.open(target, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match=f"another process is preparing {target}; wait for it"):
            prepare_resized(f"folder:{damaged}", str(tmp_path / "sets"), side=40, bad_images="skip")
    finally:
        os.close(lock)


def test_remains_of_a_killed_process_are_removed(damaged, tmp_path, in_this_process):
    remains = tmp_path / "sets" / "damaged_40" / "incomplete.ABCDEF_1.0.0"
    remains.mkdir(parents=True)
    (remains / "damaged_40-train.array_record-00000-of-00001").write_bytes(bytes(100))
    prepare_resized(f"folder:{damaged}", str(tmp_path / "sets"), side=40, bad_images="skip")
    assert [path.name for path in remains.parent.iterdir()] == ["1.0.0"]


def test_an_image_longer_than_a_jpeg_may_be_is_refused(damaged, tmp_path):
    encoded = cv2.imencode(".png", np.zeros((3, 70_000, 3), np.uint8))[1].tobytes()
    with pytest.raises(BadImage, match="70000x3 pixels, and a JPEG has 65,500 at most on a side"):
        resize_to_jpeg(encoded, 8)


def children(process):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if int(line.split()[1]) == process.pid]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_process_that_is_ended_leaves_nothing(tmp_path, number, code):
    path = tmp_path / "large"
    image = jpeg(cv2.resize(photograph("temple"), (4000, 3000)))
    for kind in "ab":
        (path / kind).mkdir(parents=True)
        for each in range(60):
            (path / kind / f"{each}.jpg").write_bytes(image)
    data_dir = tmp_path / "sets"
    command = [sys.executable, "-m", "flaxcnn", "prepare", f"folder:{path}", "--resize", "64"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        # Processes that a shell starts in the background ignore it, and so would this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(data_dir.glob("large_64/incomplete.*/*train*")):
        time.sleep(0.05)
    time.sleep(1)
    assert process.poll() is None
    workers = children(process)
    assert workers
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code
    assert said == b"" or number == signal.SIGKILL
    if number == signal.SIGKILL:  # it is left to the next one to clear up
        assert not (data_dir / "large_64" / "1.0.0").exists()
    else:
        assert not data_dir.exists()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in workers):  # noqa: PTH110
        time.sleep(0.1)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110


@pytest.mark.slow
def test_a_killed_worker_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(resize_workers, "resize", kill_itself)
    message = "a process that resizes images was killed, which the system does when memory runs out"
    with pytest.raises(UserError, match=message):
        prepare_resized(f"folder:{folder}", str(tmp_path / "sets"), side=40)
    assert not (tmp_path / "sets").exists()


def kill_itself(*task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_originals_need_not_be_prepared(tmp_path):
    message = "preparing imagenet_v2 needs TensorFlow"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=message):
        patch.setattr(preparation, "has_tensorflow", lambda: False)
        prepare_resized("imagenet_v2", str(tmp_path / "sets"), side=256)
    assert not (tmp_path / "sets").exists()
