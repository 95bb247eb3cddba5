"""With `jax_enable_x64` a float32 run sees the same images, mixed and scaled alike, as without it."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.config import AugmentConfig, DataConfig, EvaluationConfig
from flaxcnn.data import preprocess
from flaxcnn.data.augment.mixup import mix
from tests.conftest import ROOT

AUGMENTATIONS = {
    "crop": {"crop_padding": 3},
    "reflected crop": {"crop_padding": 3, "crop_fill": "reflect"},
    "translation": {"translation": 0.3},
    "flip": {"flip": "random"},
    "alternating flip": {"flip": "alternating"},
    "TrivialAugment": {"policy": "trivial_augment_wide"},
    "color jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    "lighting": {"lighting": 0.1},
    "erasing": {"erasing": 0.7},
    "RandAugment": {"policy": "rand_augment", "policy_magnitude": 17},
}
SLOW = ("RandAugment", "reflected crop")  # their draws are those of another case
COUNT = 16


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 13, 11, 3), dtype=np.uint8)


def assert_same_with_x64(function, *arguments):
    """Compares to the bit, and returns the result without x64."""

    def computed():
        # A new function each time, because JAX caches compiled programs by the function.
        return jax.tree.map(np.asarray, jax.jit(lambda: function(*arguments))())

    single = computed()
    jax.config.update("jax_enable_x64", True)
    try:
        double = computed()
    finally:
        jax.config.update("jax_enable_x64", False)
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    return single


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in AUGMENTATIONS]
)
def test_augmentation(name):
    config, data = AugmentConfig(**AUGMENTATIONS[name]), DataConfig(mean=(0.4,), std=(0.3,))
    sample_ids = np.stack([np.full(COUNT, 3, np.int32), 7 * np.arange(COUNT, dtype=np.int32)], axis=1)

    def augmented():
        key = jax.random.key(5)
        return preprocess.training_input(data, config, images(), dtype=jnp.float32, key=key, sample_ids=sample_ids)

    changed = (assert_same_with_x64(augmented) != (images() / np.float32(255) - 0.4) / 0.3).any(axis=(1, 2, 3))
    assert changed.sum() > COUNT // 3


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest", "pad"])
@pytest.mark.parametrize("size", [7, 24])
def test_scaling(method, size):
    if method == "pad" and size < 13:
        size = 13
    scaled = functools.partial(preprocess.resize, images().astype(np.float32), size, method)
    result = assert_same_with_x64(scaled)
    if method in ("bilinear", "bicubic"):
        kernel = {"bicubic": "cubic"}.get(method, method)
        expected = jax.image.resize(images().astype(np.float32), result.shape, kernel)
        np.testing.assert_allclose(result, expected, atol=1e-3)  # of 255


@pytest.mark.parametrize("views", ["center", "ten_crop"])
def test_evaluation(views):
    config = EvaluationConfig(shorter_side=9, image_size=8, views=views)
    assert_same_with_x64(lambda: preprocess.evaluation_inputs(DataConfig(), config, images(), dtype=jnp.float32))


@pytest.mark.parametrize(
    ("mixup", "cutmix"),
    [
        (0.8, 1.0),
        pytest.param(0.2, 0.0, marks=pytest.mark.slow),
        pytest.param(0.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_mixing(mixup, cutmix):
    targets = np.eye(COUNT, dtype=np.float32)

    def mixed():
        keys = jax.random.split(jax.random.key(0), 8)
        return jax.lax.map(lambda key: mix(key, images().astype(np.float32), targets, mixup, cutmix), keys)

    pixels, _ = assert_same_with_x64(mixed)
    assert len(np.unique(pixels.reshape(8, -1), axis=0)) == 8


@pytest.mark.slow
def test_training(tmp_path):
    accuracy = []
    for x64 in ("0", "1"):
        command = [sys.executable, "train.py", "--config.duration=2 epochs", f"--workdir={tmp_path / x64}"]
        subprocess.run(command, env=os.environ | {"JAX_ENABLE_X64": x64}, check=True, cwd=ROOT, timeout=300)
        results = json.loads((tmp_path / x64 / "results.json").read_text())
        accuracy.append(results["test"]["accuracy"])
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.006)  # two images of 359
