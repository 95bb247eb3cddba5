"""Changes of color against what torchvision computes, closed forms and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data.augment import color
from flaxcnn.data.augment.color import adjust_contrast, color_jitter, mean_gray, pca_lighting
from tests.draws import assert_equally_often, over_keys, random_images
from tests.reference import record_augment

RECORDED = np.load(record_augment.PATH)


@pytest.mark.parametrize("name", record_augment.FACTORS)
def test_color_operations_equal_those_of_torchvision(name):
    factors, operation = record_augment.FACTORS[name], getattr(color, name)

    def each(images, factor):
        return jax.vmap(lambda image: operation(image, factor))(images)

    @jax.jit
    def program(images):
        if name == "adjust_hue":
            return jax.vmap(each, (None, 0))(images, jnp.array(factors))
        # These need 1 - factor too, which torchvision computes from Python numbers.
        return jnp.stack([each(images, factor) for factor in factors])

    np.testing.assert_array_equal(program(record_augment.images("colour")), RECORDED[name])
    np.testing.assert_array_equal(program(record_augment.images("grey")), RECORDED[f"grey_{name}"])


def test_the_mean_of_a_large_image_is_exact():
    # Its sum is above 2**24, where float32 has no odd numbers.
    image = np.full((300, 300, 1), 255, np.uint8)
    image[0, 0] = 0
    assert mean_gray(jnp.asarray(image)) == np.float32(np.mean(image, dtype=np.float64))


@pytest.fixture
def visible_jitter(monkeypatch):
    """Replaces the operations of the jitter by functions whose results show what was called."""

    def replace(**functions):
        for name, function in functions.items():
            monkeypatch.setattr(color, f"adjust_{name}", function)

    return replace


def test_jitter_applies_all_four_in_every_order_equally_often(visible_jitter):
    functions = {
        "brightness": lambda image, factor: image * 2,
        "contrast": lambda image, factor: image + 3,
        "saturation": lambda image, factor: image * 3 + 1,
        "hue": lambda image, factor: image * image,
    }
    visible_jitter(**functions)
    results = {}
    for order in itertools.permutations(functions.values()):
        value = 7.0
        for function in order:
            value = function(value, None)
        results[value] = len(results)
    assert len(results) == 24
    found = over_keys(lambda key, image: color_jitter(key, image, 1, 1, 1, 0.5), np.full((1, 1, 3), 7.0), 4800)
    counts = np.bincount([results[value] for value in found[:, 0, 0, 0].tolist()], minlength=24)
    assert_equally_often(counts)


def test_jitter_draws_its_factors_uniformly(visible_jitter):
    names = ("brightness", "contrast", "saturation", "hue")
    bounds = ((0.0, 2.5), (0.6, 1.4), (0.9, 1.1), (-0.2, 0.2))
    visible_jitter(
        **{
            name: lambda image, factor, place=place: image + factor * (jnp.arange(6).reshape(1, 2, 3) == place)
            for place, name in enumerate(names)
        }
    )
    image = np.zeros((1, 2, 3), np.float32)
    found = over_keys(lambda key, image: color_jitter(key, image, 1.5, 0.4, 0.1, 0.2), image, 2000)
    factors = found.reshape(2000, 6)[:, :4]
    for factor, (low, high) in zip(factors.T, bounds, strict=True):
        assert low <= factor.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < factor.max() <= high
        assert abs(factor.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * 2000)
    correlation = np.corrcoef(factors.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_jitter_by_zero_and_of_the_hue_of_a_gray_image_changes_nothing():
    key, rgb, gray = jax.random.key(0), random_images(3, 3, 3), random_images(3, 3, 1)
    np.testing.assert_array_equal(color_jitter(key, rgb, 0, 0, 0, 0), rgb)
    np.testing.assert_array_equal(color_jitter(key, gray, 0, 0, 0.9, 0.5), gray)


@pytest.mark.parametrize(
    ("shape", "amounts"),
    [((4, 4, 3), (-0.1, 0, 0, 0)), ((4, 4, 3), (0, 0, 0, 0.6)), ((4, 4, 2), (0, 0.1, 0, 0))],
)
def test_jitter_refuses_impossible_amounts_and_channels(shape, amounts):
    with pytest.raises(UserError, match=r"hue up to 0\.5|1 or 3 channels"):
        color_jitter(jax.random.key(0), jnp.zeros(shape, jnp.uint8), *amounts)
    if amounts[1]:
        with pytest.raises(UserError, match="1 or 3 channels"):
            adjust_contrast(jnp.zeros(shape, jnp.uint8), 0.5)


def test_lighting_adds_one_draw_to_all_pixels_along_the_components_of_color():
    components, variances = color.IMAGENET_COMPONENTS, color.IMAGENET_VARIANCES
    np.testing.assert_allclose(components.T @ components, np.eye(3), atol=2e-3)
    # Brightness, to which all three channels add alike, has the largest variance; green against red and blue has
    # the smallest.
    assert (np.abs(components[:, 0] + 3**-0.5) < 0.02).all()
    assert variances.tolist() == sorted(variances, reverse=True)
    assert (np.sign(components[:, 2]) == (1, -1, 1)).all()

    image = random_images(3, 4, 3)
    lit = over_keys(pca_lighting, image, 4000)
    assert lit.dtype == np.float32
    gains = lit - image.astype(np.float32)
    np.testing.assert_allclose(gains, np.broadcast_to(gains[:, :1, :1], gains.shape), atol=1e-4)
    draws = np.linalg.solve(components.astype(np.float64) * variances, gains[:, 0, 0].T / 255).T
    assert (np.abs(draws.mean(0)) < 5 * 0.1 / np.sqrt(4000)).all()
    assert (np.abs(draws.std(0) / 0.1 - 1) < 5 / np.sqrt(2 * 4000)).all()
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 5 / np.sqrt(4000)


def test_lighting_scales_with_its_standard_deviation_and_takes_floats():
    key, image = jax.random.key(3), random_images(2, 2, 3)
    zero = jnp.zeros((2, 2, 3))
    np.testing.assert_allclose(pca_lighting(key, zero, 0.2), 2 * pca_lighting(key, zero), rtol=1e-5)
    np.testing.assert_array_equal(pca_lighting(key, image), pca_lighting(key, image.astype(np.float32)))
    np.testing.assert_array_equal(pca_lighting(key, image, 0.0), image)
    with pytest.raises(UserError, match="3 channels"):
        pca_lighting(key, image[..., :1])
