"""Flips, crops and translations against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data.augment.geometry import alternating_flip, random_crop, random_flip, random_translation
from tests.draws import assert_equally_often, over_keys, random_images


def test_flip_mirrors_half_of_the_images_left_to_right():
    image = random_images(2, 3, 5)
    flipped = over_keys(random_flip, image, 2000)
    mirrored = (flipped == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert abs(mirrored.sum() - 1000) < 5 * np.sqrt(500)


def test_alternating_flip_mirrors_half_at_first_and_each_image_in_every_other_epoch():
    image = random_images(2, 3, 1)

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
    image = random_images(4, 5, 2)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode)
    windows = {padded[y : y + 4, x : x + 5].tobytes(): (y, x) for y in range(3) for x in range(3)}
    assert len(windows) == 9
    counts = np.zeros((3, 3))
    for crop in over_keys(lambda key, image: random_crop(key, image, 1, mode), image, 3600):
        counts[windows[crop.tobytes()]] += 1
    assert_equally_often(counts)


def test_an_unknown_crop_mode_is_refused():
    with pytest.raises(UserError, match="mode is 'edge'; write"):
        random_crop(jax.random.key(0), jnp.zeros((4, 4, 1), jnp.uint8), 1, "edge")


def test_translations_are_rounded_uniform_numbers_and_uncover_black():
    image = random_images(5, 8, 2) // 2 + 1  # nowhere black
    fraction = 0.3
    counts = {}
    wide = np.pad(image, ((5, 5), (8, 8), (0, 0)))
    shifted = {wide[5 - y : 10 - y, 8 - x : 16 - x].tobytes(): (y, x) for y in range(-4, 5) for x in range(-7, 8)}
    for result in over_keys(lambda key, image: random_translation(key, image, fraction), image, 4000):
        place = shifted[result.tobytes()]
        counts[place] = counts.get(place, 0) + 1
    # The drawn numbers reach 1.5 and 2.4: an inner integer has an interval of length 1, the last one what remains.
    rows = dict.fromkeys((-1, 0, 1), 1 / 3)
    columns = {x: (0.9 if abs(x) == 2 else 1) / 4.8 for x in (-2, -1, 0, 1, 2)}
    assert set(counts) == set(itertools.product(rows, columns))
    for (y, x), count in counts.items():
        probability = rows[y] * columns[x]
        assert abs(count - 4000 * probability) < 5 * np.sqrt(4000 * probability * (1 - probability)), (y, x)
