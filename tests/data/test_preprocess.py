"""What happens to pixels, against closed forms, enumeration, and OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.config import DataConfig
from flaxcnn.data.preprocess import normalize, preprocess, random_crop, random_flip, resize


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_normalize_is_its_formula_for_each_channel():
    images = pictures(2, 3, 4, 3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    result = normalize(jnp.asarray(images), mean, std, jnp.bfloat16)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_lecun_scaling_maps_paper_and_ink_to_the_values_of_1998():
    scaled = normalize(jnp.array([[[[0], [255]]]], jnp.uint8), (0.1 / 1.275,), (1 / 1.275,), jnp.float32)
    np.testing.assert_allclose(scaled.ravel(), [-0.1, 1.175], atol=1e-6)


def test_flip_mirrors_half_of_the_images_left_to_right():
    images = pictures(2000, 2, 3, 1)
    keys = jax.random.split(jax.random.key(0), 2000)
    flipped = np.asarray(jax.vmap(random_flip)(keys, jnp.asarray(images)))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    unchanged = (flipped == images).all((1, 2, 3))
    assert (mirrored | unchanged).all()
    assert abs(mirrored.sum() - 1000) < 5 * np.sqrt(500)


def test_crops_are_windows_of_the_padded_image_all_equally_likely():
    image = pictures(4, 5, 2)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = {padded[y : y + 4, x : x + 5].tobytes(): (y, x) for y in range(3) for x in range(3)}
    assert len(windows) == 9
    keys = jax.random.split(jax.random.key(0), 3600)
    crops = np.asarray(jax.vmap(lambda key: random_crop(key, jnp.asarray(image), padding=1))(keys))
    counts = np.zeros((3, 3))
    for crop in crops:
        counts[windows[crop.tobytes()]] += 1
    # 400 expected in each cell, standard deviation sqrt(3600 * 1/9 * 8/9) = 18.9
    assert np.abs(counts - 400).max() < 5 * 18.9


def test_bilinear_enlarging_equals_opencv():
    images = pictures(3, 8, 8, 1)
    expected = [cv2.resize(image.astype(np.float32), (28, 28), interpolation=cv2.INTER_LINEAR) for image in images]
    np.testing.assert_allclose(resize(jnp.asarray(images), 28, "bilinear")[..., 0], expected, rtol=1e-4, atol=1e-2)


def test_nearest_enlarging_repeats_pixels():
    images = pictures(3, 8, 8, 2)
    expected = images.repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(resize(jnp.asarray(images), 24, "nearest"), expected)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest", "pad"])
def test_resizing_keeps_a_constant_and_the_same_size(method):
    images = jnp.full((2, 6, 6, 3), 77, jnp.uint8)
    np.testing.assert_array_equal(resize(images, 6, method), images)
    assert resize(images, 9, method).shape == (2, 9, 9, 3)
    if method != "pad":
        for size in (3, 9):
            np.testing.assert_allclose(resize(images, size, method), 77, rtol=1e-5)


def test_pad_centres_on_black():
    images = pictures(2, 28, 27, 1)
    result = np.asarray(resize(jnp.asarray(images), 32, "pad"))
    np.testing.assert_array_equal(result[:, 2:30, 2:29], images)
    assert result.sum() == images.sum()


def test_evaluation_is_not_augmented_and_training_depends_on_the_keys_alone():
    config = DataConfig(image_size=12, flip=True, crop_padding=2, mean=(0.5,), std=(0.25,))
    images = jnp.asarray(pictures(4, 8, 8, 1))

    def run(seed=None, share=slice(None)):
        keys = None if seed is None else jax.random.split(jax.random.key(seed), 4)[share]
        return np.asarray(preprocess(config, images[share], dtype=jnp.float32, keys=keys))

    np.testing.assert_array_equal(run(), run())
    plain = (np.asarray(resize(images, 12, "bilinear")) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(run(), plain, atol=1e-5)
    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))
    np.testing.assert_allclose(run(1)[2:], run(1, slice(2, 4)), rtol=1e-6)  # whatever the other images
