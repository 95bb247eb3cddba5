"""Mixup and cutmix: formulas, exact fractions of pixels, distributions, and batches in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data.augment.mixup import cutmix, mix, mixup
from tests.draws import QUICK

HEIGHT, WIDTH = 9, 14


def numbered(size):
    """Images whose pixels are the index of the example, and targets with a class for each example."""
    images = np.broadcast_to(np.arange(size, dtype=np.float32)[:, None, None, None], (size, HEIGHT, WIDTH, 1))
    return jnp.asarray(images), jnp.eye(size, dtype=jnp.float32)


def over_keys(function, count, size=2):
    """The results of `function(key, images, targets)` on numbered images, for `count` keys."""
    keys = jax.random.split(jax.random.key(0), count)
    program = jax.jit(jax.vmap(function, (0, None, None)), compiler_options=QUICK)
    return [np.asarray(result) for result in program(keys, *numbered(size))]


def replace_lambda(monkeypatch, draw):
    """Replaces the Beta variable, which takes seconds to compile, by `draw(key, alpha)`."""
    monkeypatch.setattr("flaxcnn.data.augment.mixup._draw_lambda", draw)


def test_mixup_averages_neighbors_by_a_beta_variable():
    alpha = 0.2
    images, targets = over_keys(functools.partial(mixup, alpha=alpha), 3000, size=4)
    weight = targets[:, 0, 0]
    ones = np.ones((HEIGHT, WIDTH, 1))
    # One weight for the whole batch: 0 with 1, 2 with 3.
    expected = np.stack([1 - weight, weight, 3 - weight, 2 + weight], 1)[..., None, None, None] * ones
    np.testing.assert_allclose(images, expected, atol=1e-5)
    pair = np.stack([np.stack([weight, 1 - weight], -1), np.stack([1 - weight, weight], -1)], 1)
    np.testing.assert_allclose(targets, np.kron(np.eye(2), np.ones((2, 2))) * np.tile(pair, (1, 2, 2)), atol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    # Beta(a, a) has variance 1 / (4 (2 a + 1)) and fourth central moment 3 / (16 (2 a + 1) (2 a + 3)).
    variance, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(weight.mean() - 0.5) < 5 * np.sqrt(variance / 3000)
    assert abs(((weight - 0.5) ** 2).mean() - variance) < 5 * np.sqrt((fourth - variance**2) / 3000)


def simulated_boxes(rng, count):
    """Boxes of cutmix with alpha 1, as the paper's code draws them: (count, H, W), true inside."""
    boxes = np.zeros((count, HEIGHT, WIDTH), bool)
    for box in boxes:
        side = np.sqrt(1 - rng.beta(1, 1))
        half_height, half_width = int(HEIGHT * side) // 2, int(WIDTH * side) // 2
        y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
        box[max(y - half_height, 0) : y + half_height, max(x - half_width, 0) : x + half_width] = True
    return boxes


def test_cutmix_pastes_boxes_and_weighs_by_exact_fractions_of_pixels(monkeypatch):
    replace_lambda(monkeypatch, lambda key, alpha: jax.random.uniform(key))  # which is Beta(1, 1)
    count = 3000
    images, targets = over_keys(functools.partial(cutmix, alpha=1.0), count, size=4)
    pasted = images[:, 0, ..., 0] == 1
    for position, (own, other) in enumerate([(0, 1), (1, 0), (2, 3), (3, 2)]):
        np.testing.assert_array_equal(images[:, position, ..., 0], np.where(pasted, other, own))
        kept = 1 - pasted.mean((1, 2))
        np.testing.assert_allclose(targets[:, position, own], kept, atol=1e-6)
        np.testing.assert_allclose(targets[:, position, other], 1 - kept, atol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    spans = pasted.any(2)[:, :, None] & pasted.any(1)[:, None]
    np.testing.assert_array_equal(pasted, spans)  # boxes

    expected = simulated_boxes(np.random.default_rng(0), count)
    for found, other in ((pasted, expected), (pasted.mean((1, 2)), expected.mean((1, 2)))):
        variance = np.maximum(found.var(0), other.var(0))
        assert (np.abs(found.mean(0) - other.mean(0)) < 5 * np.sqrt(2 * variance / count)).all()


def test_mix_takes_one_of_the_two_at_random_with_its_own_alpha(monkeypatch):
    replace_lambda(monkeypatch, lambda key, alpha: jnp.float32(alpha))
    images, targets = over_keys(lambda *batch: mix(*batch, 0.25, 0.75), 1000)
    is_mixup = (images[:, 0] == 0.75).all((1, 2, 3))
    assert abs(is_mixup.sum() - 500) < 5 * np.sqrt(250)
    np.testing.assert_array_equal(targets[is_mixup, 0, 0], 0.25)
    # A quarter of the area has half of each side: 4 of the 9 rows, and of the 14 columns 7, rounded down to 2 * 3.
    assert set(np.unique(images[~is_mixup])) == {0.0, 1.0}
    pasted = images[~is_mixup][:, 0].sum((1, 2, 3))
    assert pasted.max() == 4 * 6
    np.testing.assert_allclose(targets[~is_mixup, 0, 1], pasted / (9 * 14), atol=1e-6)


def test_mix_with_one_alpha_is_that_method_and_with_none_the_identity(monkeypatch):
    replace_lambda(monkeypatch, lambda key, alpha: alpha * jax.random.uniform(key))
    key, batch = jax.random.key(4), numbered(4)
    found = jax.jit(
        lambda key, batch: [
            (mix(key, *batch, 0.4, 0.0), mixup(key, *batch, 0.4)),
            (mix(key, *batch, 0.0, 0.7), cutmix(key, *batch, 0.7)),
            (mix(key, *batch, 0.0, 0.0), batch),
        ],
        compiler_options=QUICK,
    )(key, batch)
    for mixed, expected in found:
        for one, other in zip(mixed, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    changed = [not np.array_equal(mixed[0], batch[0]) for mixed, _ in found]
    assert changed == [True, True, False]


def test_pieces_of_a_batch_are_mixed_like_the_whole(monkeypatch):
    replace_lambda(monkeypatch, lambda key, alpha: jax.random.uniform(key))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 6, 5, 3)).astype(np.float32)
    targets = rng.dirichlet(np.ones(4), 8).astype(np.float32)
    program = jax.jit(lambda key, images, targets: mix(key, images, targets, 0.2, 1.0))
    for seed in range(6):  # of which some take mixup and some cutmix
        key = jax.random.key(seed)
        whole = program(key, images, targets)
        np.testing.assert_allclose(whole[1].sum(-1), 1, atol=1e-6)
        np.testing.assert_array_equal(whole[0], program(key, images, targets)[0])
        for count in (2, 4):
            pieces = zip(np.split(images, count), np.split(targets, count), strict=True)
            mixed = [program(key, *piece) for piece in pieces]
            for one, of_pieces in zip(whole, zip(*mixed, strict=True), strict=True):
                np.testing.assert_array_equal(one, np.concatenate(of_pieces))


@pytest.mark.parametrize("function", [mixup, cutmix, functools.partial(mix, cutmix_alpha=0.5)])
@pytest.mark.parametrize(("size", "alpha", "message"), [(3, 0.2, "batch of 3 .* must be even"), (4, -0.1, "-0.1")])
def test_odd_batches_and_negative_alphas_are_refused(function, size, alpha, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda key, *batch: function(key, *batch, alpha), jax.random.key(0), *numbered(size))
