"""Exported programs run in a process that has JAX alone, for any number of images."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError, create_model, export
from flaxcnn.inference import exporting
from tests.marks import sampled
from tests.variables import random_images, random_variables, tame_gates

# Runs every program in the folder on its images, of which there are 5, and on the first; neither Flax nor this
# package can be imported.
CHILD = """
import sys
sys.modules["flaxcnn"] = sys.modules["flax"] = None
import jax, numpy as np
from pathlib import Path
for path in Path().glob("*.program"):
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    images = np.load(path.with_suffix(".npy"))
    np.savez(path.with_suffix(".npz"), five=program.call(images), one=program.call(images[:1]))
"""


class Programs:
    """Programs in a folder, each with images and with what it must give for them."""

    def __init__(self, folder):
        self.folder, self.expected = folder, {}

    def add(self, model, images, tolerance=1e-5, *, preprocess=None, **options):
        path = self.folder / f"{len(self.expected)}.program"
        inputs = preprocess(images) if preprocess else [images]
        variables = tame_gates(random_variables(model, inputs[0].shape))
        export(path, model, variables, images.shape[1:], preprocess=preprocess, **options)
        np.save(path.with_suffix(".npy"), images)
        apply = jax.jit(lambda image: model.apply(variables, image, train=False))
        expected = apply(images) if not preprocess else sum(jax.nn.softmax(apply(x)) for x in inputs) / len(inputs)
        self.expected[path.with_suffix(".npz")] = np.asarray(expected), tolerance
        return path

    def check(self):
        done = subprocess.run([sys.executable, "-c", CHILD], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for path, (expected, tolerance) in self.expected.items():
            results = np.load(path)
            assert np.ptp(expected) > 0 and results["five"].dtype == np.float32
            tolerance *= np.abs(expected).max()
            np.testing.assert_allclose(results["five"], expected, rtol=0, atol=tolerance)
            np.testing.assert_allclose(results["one"], expected[:1], rtol=0, atol=tolerance)


def floating(size, channels=3):
    return np.asarray(random_images(5, size, size, channels), np.float32)


def test_programs_give_the_logits_without_this_package(tmp_path):
    programs = Programs(tmp_path)
    programs.add(create_model("lenet5", norm="batch_norm"), floating(28, 1))

    def preprocess(images):
        large = jax.image.resize(images.astype(jnp.float32) / 255, (images.shape[0], 16, 16, 3), "bilinear")
        return [large, large[:, :, ::-1]]

    images = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), np.uint8)
    names = ("cat", "dog", "Käfer")
    model = create_model("lenet5", num_classes=3, activation="tanh")
    path = programs.add(model, images, preprocess=preprocess, probabilities=True, class_names=names)
    about = {"image_shape": [12, 10, 3], "dtype": "uint8", "class_names": list(names)}
    assert json.loads((tmp_path / f"{path.name}.json").read_text()) == about
    programs.check()


@pytest.mark.slow
def test_programs_with_another_norm_and_in_half_precision(tmp_path):
    programs = Programs(tmp_path)
    programs.add(create_model("resnet20", depths=(1,), widths=(16,), norm="group_norm"), floating(8))
    programs.add(create_model("densenet40_12", depths=(1, 1), dtype="bfloat16"), floating(8), tolerance=0.03)
    programs.check()


@pytest.mark.parametrize(
    ("name", "size"),
    sampled(
        [
            ("alexnet_2012", 64),
            ("lenet5_1998", 32),
            ("alexnet", 64),
            ("vgg11_bn", 40),
            ("nin_cifar", 32),
            ("googlenet", 32),
            ("resnet18", 40),
            ("googlenet_paper", 40),
            ("resnet30", 40),
            ("resnext50_32x4d", 32),
            ("wrn_40_4", 32),
            ("densenet121", 40),
            ("regnet_y_400mf", 32),
        ],
        every=6,
    ),
)
def test_programs_of_every_family(tmp_path, name, size):
    programs = Programs(tmp_path)
    small = {"hidden": 64} if hasattr(create_model(name), "hidden") else {}
    programs.add(create_model(name, **small), floating(size))
    programs.check()


@pytest.mark.parametrize(
    ("name", "fields", "sizes"),
    [
        ("resnet18", {"depths": (1, 1), "widths": (8, 16)}, [(33, 40), (1, 7)]),
        ("resnet50", {"depths": (1,), "widths": (8,), "stem": "cifar"}, [(5, 9)]),
        ("wrn_40_4", {"depths": (1, 1), "widths": (8, 16)}, [(9, 8)]),
        ("anynet", {"stages": ((1, 16, 8),), "squeeze_ratio": 0.25}, [(17, 12)]),
    ],
)
def test_images_of_any_size(tmp_path, name, fields, sizes):
    model = create_model(name, **fields)
    variables = tame_gates(random_variables(model, (1, 16, 16, 3)))
    path = tmp_path / "any.program"
    export(path, model, variables, (None, None, 3))
    export(tmp_path / "wide.program", model, variables, (sizes[0][0], None, 3))
    for size in sizes:
        images = np.asarray(random_images(2, *size, 3), np.float32)
        expected = jax.jit(lambda images: model.apply(variables, images, train=False))(images)
        for file in (path, tmp_path / "wide.program") if size == sizes[0] else (path,):
            found = jax.export.deserialize(bytearray(file.read_bytes())).call(images)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("lenet5", {}, 28),
        ("alexnet", {"hidden": 8}, 64),
        ("vgg11", {"hidden": 8, "blocks": ((1, 8), (1, 8))}, 16),
        ("resnet30", {"depths": (1,), "widths": (8,)}, 8),
    ],
)
def test_what_takes_one_size_says_so(tmp_path, name, fields, size):
    model = create_model(name, **fields)
    variables = random_variables(model, (1, size, size, 3))
    for shape in ((None, None, 3), (size, None, 3)):
        with pytest.raises(UserError, match=r"takes images of one size.*; give height and width") as error:
            export(tmp_path / "any.program", model, variables, shape)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def lenet():
    model = create_model("lenet5")
    return model, random_variables(model, (1, 28, 28, 1))


def test_what_cannot_be_written_is_refused(tmp_path, lenet, monkeypatch):
    (tmp_path / "there").write_text("mine")
    (tmp_path / "new.json").write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="there exists already"):
        export(tmp_path / "there", *lenet, (28, 28, 1))
    with pytest.raises(UserError, match=r"new\.json exists already"):
        export(tmp_path / "new", *lenet, (28, 28, 1), class_names=["a"])
    with pytest.raises(UserError, match="there is no folder"):
        export(tmp_path / "nowhere" / "program", *lenet, (28, 28, 1))
    with pytest.raises(UserError, match="do not fit the model and images of 32x32x1"):
        export(tmp_path / "new", *lenet, (32, 32, 1))
    monkeypatch.setattr(exporting, "_LARGEST", 1000)
    with pytest.raises(UserError, match="holds up to 2 GiB of weights"):
        export(tmp_path / "new", *lenet, (28, 28, 1))
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "there").read_text() == "mine"


def test_a_full_disk_leaves_nothing_behind(tmp_path, lenet, monkeypatch):
    def fail(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path / "program", *lenet, (28, 28, 1))
    assert list(tmp_path.iterdir()) == []
