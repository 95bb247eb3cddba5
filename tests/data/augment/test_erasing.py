"""Random erasing against a simulation of torchvision's."""

import jax
import numpy as np
import pytest

from flaxcnn.data.augment.erasing import random_erasing
from tests.draws import over_keys, random_images


def simulated_box(rng, height, width, area, ratio):
    """One box of torchvision's RandomErasing, (top, left, height, width), or None."""
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        h, w = round(np.sqrt(pixels * aspect)), round(np.sqrt(pixels / aspect))
        if h < height and w < width:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    return None


# With the second case most boxes do not fit.
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
    # Means and second moments, also those between positions and sizes.
    for moments in (lambda boxes: boxes, lambda boxes: boxes[:, :, None] * boxes[:, None]):
        one, other = moments(found), moments(expected)
        std = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        assert (np.abs(one.mean(0) - other.mean(0)) < 5 * std).all()


def test_nothing_is_erased_if_no_box_fits_or_the_probability_is_zero():
    image = random_images(5, 6, 3).astype(np.float32)
    for probability, area in ((1.0, (1.0, 1.0)), (0.0, (0.1, 0.2))):
        erase = jax.jit(
            lambda key, image, p=probability, area=area: random_erasing(key, image, p, area, (1.0, 1.0))
        )
        for seed in range(5):
            np.testing.assert_array_equal(erase(jax.random.key(seed), image), image)
