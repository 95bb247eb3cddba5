"""What happens to pixels, against closed forms, enumeration, and OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.config import AugmentConfig, DataConfig, EvaluationConfig
from flaxcnn.data.preprocess import evaluation_inputs, normalize, resize, training_input


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


def inputs(images, config, seed=1, epoch=0, examples=None, **data):
    examples = np.arange(len(images)) if examples is None else examples
    sample_ids = jnp.stack([jnp.full(len(images), epoch), jnp.asarray(examples)], axis=1)
    key = jax.random.key(seed)
    return np.asarray(
        training_input(
            DataConfig(**data), config, jnp.asarray(images), dtype=jnp.float32, key=key, sample_ids=sample_ids
        )
    )


EVERYTHING = AugmentConfig(
    crop_padding=2,
    crop_fill="reflect",
    flip="random",
    policy="trivial_augment_wide",
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    lighting=0.1,
    erasing=0.5,
)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(AugmentConfig(crop_padding=2, flip="random"), id="few"),
        pytest.param(EVERYTHING, marks=pytest.mark.slow, id="all"),
    ],
)
def test_what_an_image_becomes_depends_on_seed_epoch_and_example_alone(config):
    images = pictures(6, 8, 8, 3)
    expected = inputs(images, config)
    np.testing.assert_array_equal(inputs(images, config), expected)
    order = [3, 1, 5]
    found = inputs(images[order], config, examples=order)  # whatever the other images and the place in the batch
    np.testing.assert_allclose(found, expected[order], rtol=1e-5, atol=1e-6)
    for other in (inputs(images, config, seed=2), inputs(images, config, epoch=1)):
        assert (other != expected).any((1, 2, 3)).sum() >= 3
    renamed = inputs(images, config, examples=np.arange(6) + 10)
    assert (renamed != expected).any((1, 2, 3)).sum() >= 3


def test_without_augmentation_training_and_evaluation_see_the_same():
    images = jnp.asarray(pictures(4, 8, 8, 1))
    data = {"image_size": 12, "mean": (0.5,), "std": (0.25,)}
    plain = (np.asarray(resize(images, 12, "bilinear")) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(inputs(images, AugmentConfig(), **data), plain, atol=1e-5)
    (view,) = evaluation_inputs(DataConfig(**data), EvaluationConfig(), images, dtype=jnp.float32)
    np.testing.assert_allclose(view, plain, atol=1e-5)


def test_lighting_is_added_before_the_mean_is_subtracted_and_nothing_is_cut_off():
    """White stays without a limit at 1: the noise has the size that the paper gives it."""
    images = np.full((500, 2, 2, 3), 255, np.uint8)
    found = inputs(images, AugmentConfig(lighting=0.1), mean=(0.4,), std=(0.5,))
    noise = (found * 0.5 + 0.4 - 1)[:, 0, 0]
    np.testing.assert_allclose(found, found[:, :1, :1] * np.ones((1, 2, 2, 1)), rtol=1e-6)
    assert abs(noise.mean()) < 0.005 and 0.008 < noise.std() < 0.02  # 0.1 * sqrt(sum of eigenvalues^2 / 3) = 0.0126


def test_alternating_flips_show_both_sides_in_two_epochs():
    images = pictures(400, 3, 4, 1)
    first, second, third = (
        np.rint(inputs(images, AugmentConfig(flip="alternating"), epoch=epoch) * 255) for epoch in range(3)
    )
    mirrored = images[:, :, ::-1]
    was_flipped = (first == mirrored).all((1, 2, 3))
    assert abs(was_flipped.sum() - 200) < 5 * 10
    np.testing.assert_array_equal(second, np.where(was_flipped[:, None, None, None], images, mirrored))
    np.testing.assert_array_equal(third, first)


def seen(images, image_size=None, **evaluation):
    data = DataConfig(image_size=image_size)
    views = evaluation_inputs(data, EvaluationConfig(**evaluation), jnp.asarray(images), dtype=jnp.float32)
    return [np.rint(np.asarray(view) * 255).astype(np.uint8) for view in views]


def test_the_ten_crops_are_four_corners_and_the_centre_and_their_mirror_images():
    images = pictures(2, 10, 10, 3)
    found = seen(images, image_size=6, shorter_side=10, views="ten_crop")
    crops = [images[:, y : y + 6, x : x + 6] for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
    expected = crops + [crop[:, :, ::-1] for crop in crops]
    assert len(found) == 10
    for view, crop in zip(found, expected, strict=True):
        np.testing.assert_array_equal(view, crop)


def test_one_view_is_the_centre_and_flip_adds_its_mirror_image():
    images = pictures(2, 10, 10, 3)
    centre = images[:, 2:8, 2:8]
    for views, expected in (("center", [centre]), ("flip", [centre, centre[:, :, ::-1]])):
        found = seen(images, image_size=6, shorter_side=10, views=views)
        np.testing.assert_array_equal(found, expected)
    (as_stored,) = seen(images)
    np.testing.assert_array_equal(as_stored, images)


def test_scales_show_the_whole_image_at_each_size():
    images = pictures(2, 10, 10, 3)
    found = seen(images, image_size=6, scales=(8, 10, 12), views="flip")
    assert [view.shape[1] for view in found] == [8, 10, 12] * 2
    np.testing.assert_array_equal(found[1], images)
    np.testing.assert_array_equal(found[4], images[:, :, ::-1])
    expected = np.rint(np.asarray(resize(jnp.asarray(images), 8, "bilinear"))).astype(int)
    np.testing.assert_allclose(found[0].astype(int), expected, atol=1)


def test_training_at_one_size_and_evaluating_at_another():
    images = pictures(1, 10, 10, 3)
    data, config = DataConfig(image_size=4), EvaluationConfig(image_size=8, shorter_side=10)
    (view,) = evaluation_inputs(data, config, jnp.asarray(images), dtype=jnp.float32)
    np.testing.assert_allclose(np.asarray(view) * 255, images[:, 1:9, 1:9], rtol=1e-5)
