"""Augmentation of one image: against enumeration, closed forms, simulation, and what torchvision computes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data import augment
from flaxcnn.data.augment import (
    adjust_contrast,
    alternating_flip,
    color_jitter,
    mean_grey,
    pca_lighting,
    random_crop,
    random_erasing,
    random_flip,
    random_translation,
    rounded_product,
    rounded_quotient,
)
from tests.reference import record_augment

RECORDED = np.load(record_augment.PATH)
# Programs that run once are better compiled soon than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def over_keys(function, image, count, seed=0):
    """The results of `function(key, image)` for so many keys."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(function, (0, None)), compiler_options=QUICK)(keys, jnp.asarray(image)))


def assert_equally_often(counts, total):
    """Each count is within 5 standard deviations of its share."""
    share = 1 / counts.size
    assert np.abs(counts - total * share).max() < 5 * np.sqrt(total * share * (1 - share)), counts


def test_flip_mirrors_half_of_the_images_left_to_right():
    image = pictures(2, 3, 5)
    flipped = over_keys(random_flip, image, 2000)
    mirrored = (flipped == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert abs(mirrored.sum() - 1000) < 5 * np.sqrt(500)


def test_alternating_flip_mirrors_half_at_first_and_each_image_in_every_other_epoch():
    image = pictures(2, 3, 1)

    def four_epochs(key, image):
        return jnp.stack([alternating_flip(key, image, epoch) for epoch in (0, 1, 2, jnp.int32(3))])

    epochs = over_keys(four_epochs, image, 2000).swapaxes(0, 1)
    mirrored = np.stack([(flipped == image[:, ::-1]).all((1, 2, 3)) for flipped in epochs])
    plain = np.stack([(flipped == image).all((1, 2, 3)) for flipped in epochs])
    assert (mirrored ^ plain).all()
    assert abs(mirrored[0].sum() - 1000) < 5 * np.sqrt(500)
    for earlier, later in itertools.pairwise(mirrored):
        np.testing.assert_array_equal(earlier, ~later)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crops_are_windows_of_the_padded_image_all_equally_likely(mode):
    image = pictures(4, 5, 2)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode)
    windows = {padded[y : y + 4, x : x + 5].tobytes(): (y, x) for y in range(3) for x in range(3)}
    assert len(windows) == 9
    counts = np.zeros((3, 3))
    for crop in over_keys(lambda key, image: random_crop(key, image, 1, mode), image, 3600):
        counts[windows[crop.tobytes()]] += 1
    assert_equally_often(counts, 3600)


def test_a_crop_of_another_mode_is_refused():
    with pytest.raises(UserError, match="mode is 'edge'; write"):
        random_crop(jax.random.key(0), jnp.zeros((4, 4, 1), jnp.uint8), 1, "edge")


def test_translations_are_rounded_uniform_numbers_and_uncover_black():
    image = pictures(5, 8, 2) // 2 + 1  # nowhere black
    fraction = 0.3
    counts = {}
    wide = np.pad(image, ((5, 5), (8, 8), (0, 0)))
    shifted = {wide[5 - y : 10 - y, 8 - x : 16 - x].tobytes(): (y, x) for y in range(-4, 5) for x in range(-7, 8)}
    for result in over_keys(lambda key, image: random_translation(key, image, fraction), image, 4000):
        place = shifted[result.tobytes()]
        counts[place] = counts.get(place, 0) + 1
    # The numbers reach 1.5 and 2.4: an inner whole number has an interval of length 1, the last one what remains.
    rows = dict.fromkeys((-1, 0, 1), 1 / 3)
    columns = {x: (0.9 if abs(x) == 2 else 1) / 4.8 for x in (-2, -1, 0, 1, 2)}
    assert set(counts) == set(itertools.product(rows, columns))
    for (y, x), count in counts.items():
        share = rows[y] * columns[x]
        assert abs(count - 4000 * share) < 5 * np.sqrt(4000 * share * (1 - share)), (y, x)


@pytest.mark.parametrize("name", record_augment.FACTORS)
def test_colour_operations_equal_those_of_torchvision(name):
    factors, operation = record_augment.FACTORS[name], getattr(augment, name)

    def each(images, factor):
        return jax.vmap(lambda image: operation(image, factor))(images)

    @jax.jit
    def program(images):
        if name == "adjust_hue":
            return jax.vmap(each, (None, 0))(images, jnp.array(factors))
        # These take 1 - factor too, which torchvision computes of Python's numbers.
        return jnp.stack([each(images, factor) for factor in factors])

    np.testing.assert_array_equal(program(record_augment.pictures("colour")), RECORDED[name])
    np.testing.assert_array_equal(program(record_augment.pictures("grey")), RECORDED[f"grey_{name}"])


def test_products_and_quotients_are_rounded():
    a, b, c = np.random.default_rng(0).uniform(0.5, 2, (3, 10000)).astype(np.float32)
    found = jax.jit(lambda a, b, c: rounded_product(a, b) + c)(a, b, c)
    np.testing.assert_array_equal(found, a * b + c)
    np.testing.assert_array_equal(jax.jit(rounded_quotient)(a, b), a / b)
    for divisor in (6, 255, 50176):
        divide = jax.jit(lambda a, divisor=divisor: rounded_quotient(a, jnp.float32(divisor)))
        np.testing.assert_array_equal(divide(a), a / np.float32(divisor))


def test_the_mean_of_a_large_image_is_exact():
    # Its sum is beyond 2**24, where float32 leaves out odd numbers.
    image = np.full((300, 300, 1), 255, np.uint8)
    image[0, 0] = 0
    assert mean_grey(jnp.asarray(image)) == np.float32(np.mean(image, dtype=np.float64))


@pytest.fixture
def visible_jitter(monkeypatch):
    """Replaces the operations of the jitter by functions whose results tell what was called."""

    def replace(**functions):
        for name, function in functions.items():
            monkeypatch.setattr(augment, f"adjust_{name}", function)

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
    assert_equally_often(counts, 4800)


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


def test_jitter_of_nothing_and_of_the_hue_of_grey_changes_nothing():
    key, colour, grey = jax.random.key(0), pictures(3, 3, 3), pictures(3, 3, 1)
    np.testing.assert_array_equal(color_jitter(key, colour, 0, 0, 0, 0), colour)
    np.testing.assert_array_equal(color_jitter(key, grey, 0, 0, 0.9, 0.5), grey)


@pytest.mark.parametrize(
    ("shape", "amounts"),
    [((4, 4, 3), (-0.1, 0, 0, 0)), ((4, 4, 3), (0, 0, 0, 0.6)), ((4, 4, 2), (0, 0.1, 0, 0))],
)
def test_jitter_refuses_what_it_cannot_do(shape, amounts):
    with pytest.raises(UserError, match=r"hue up to 0\.5|1 or 3 channels"):
        color_jitter(jax.random.key(0), jnp.zeros(shape, jnp.uint8), *amounts)
    if amounts[1]:
        with pytest.raises(UserError, match="1 or 3 channels"):
            adjust_contrast(jnp.zeros(shape, jnp.uint8), 0.5)


def test_lighting_is_one_draw_an_image_along_the_components_of_colour():
    components, variances = augment.IMAGENET_COMPONENTS, augment.IMAGENET_VARIANCES
    np.testing.assert_allclose(components.T @ components, np.eye(3), atol=2e-3)
    # Most of the variance is of brightness, to which all three add alike; the least is of green against the others.
    assert (np.abs(components[:, 0] + 3**-0.5) < 0.02).all()
    assert variances.tolist() == sorted(variances, reverse=True)
    assert (np.sign(components[:, 2]) == (1, -1, 1)).all()

    image = pictures(3, 4, 3)
    lit = over_keys(pca_lighting, image, 4000)
    assert lit.dtype == np.float32
    gains = lit - image.astype(np.float32)
    np.testing.assert_allclose(gains, np.broadcast_to(gains[:, :1, :1], gains.shape), atol=1e-4)
    draws = np.linalg.solve(components.astype(np.float64) * variances, gains[:, 0, 0].T / 255).T
    assert (np.abs(draws.mean(0)) < 5 * 0.1 / np.sqrt(4000)).all()
    assert (np.abs(draws.std(0) / 0.1 - 1) < 5 / np.sqrt(2 * 4000)).all()
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 5 / np.sqrt(4000)


def test_lighting_scales_with_its_deviation_and_takes_floats():
    key, image = jax.random.key(3), pictures(2, 2, 3)
    zero = jnp.zeros((2, 2, 3))
    np.testing.assert_allclose(pca_lighting(key, zero, 0.2), 2 * pca_lighting(key, zero), rtol=1e-5)
    np.testing.assert_array_equal(pca_lighting(key, image), pca_lighting(key, image.astype(np.float32)))
    np.testing.assert_array_equal(pca_lighting(key, image, 0.0), image)
    with pytest.raises(UserError, match="3 channels"):
        pca_lighting(key, image[..., :1])


def simulated_box(rng, height, width, area, ratio):
    """One box of torchvision's RandomErasing, (top, left, height, width), or None."""
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        h, w = round(np.sqrt(pixels * aspect)), round(np.sqrt(pixels / aspect))
        if h < height and w < width:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    return None


# The second draws boxes that mostly do not fit.
@pytest.mark.parametrize(("area", "ratio"), [((0.02, 1 / 3), (0.3, 3.3)), ((0.5, 0.9), (0.2, 0.5))])
def test_erased_boxes_are_distributed_as_those_of_torchvision(area, ratio):
    height, width, count = 12, 17, 3000
    image = np.ones((height, width, 2), np.float32)
    erased = over_keys(lambda key, image: random_erasing(key, image, 0.7, area, ratio), image, count) == 0
    np.testing.assert_array_equal(erased[..., 0], erased[..., 1])
    found = []
    for mask in erased[..., 0]:
        if mask.any():
            (rows,), (columns,) = mask.any(1).nonzero(), mask.any(0).nonzero()
            box = (rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
            assert mask.sum() == box[2] * box[3]
            found.append(box)
    rng = np.random.default_rng(0)
    expected = [simulated_box(rng, height, width, area, ratio) for _ in range(count) if rng.uniform() < 0.7]
    expected = [box for box in expected if box is not None]
    assert abs(len(found) - len(expected)) < 5 * np.sqrt(2 * count * 0.25)
    found, expected = np.array(found, float), np.array(expected, float)
    # Means and second moments, also between the places and the sizes.
    for moments in (lambda boxes: boxes, lambda boxes: boxes[:, :, None] * boxes[:, None]):
        one, other = moments(found), moments(expected)
        deviation = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        assert (np.abs(one.mean(0) - other.mean(0)) < 5 * deviation).all()


def test_erasing_what_never_fits_or_never_happens_changes_nothing():
    image = pictures(5, 6, 3).astype(np.float32)
    for probability, area in ((1.0, (1.0, 1.0)), (0.0, (0.1, 0.2))):
        erase = jax.jit(
            lambda key, image, p=probability, area=area: random_erasing(key, image, p, area, (1.0, 1.0))
        )
        for seed in range(5):
            np.testing.assert_array_equal(erase(jax.random.key(seed), image), image)


def test_an_image_depends_on_its_key_alone_and_not_on_those_beside_it():
    images = jnp.asarray(pictures(4, 9, 8, 3))
    keys, others = (jax.random.split(jax.random.key(seed), 4) for seed in (5, 6))

    def several(key, image):
        image = random_crop(key, color_jitter(key, image, 0.4, 0.4, 0.4, 0.1), 2)
        return random_erasing(key, image, 0.5)

    together = jax.jit(jax.vmap(several), compiler_options=QUICK)
    one_by_one = jax.jit(lambda *batch: jax.lax.map(lambda one: several(*one), batch), compiler_options=QUICK)
    found = np.asarray(together(keys, images))
    np.testing.assert_array_equal(found, one_by_one(keys, images))
    np.testing.assert_array_equal(found, together(keys, images))
    assert (found != together(others, images)).any((1, 2, 3)).all()
