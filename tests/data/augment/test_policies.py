"""RandAugment and TrivialAugment: operations and magnitudes against torchvision's; what is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data.augment import policies
from flaxcnn.data.augment.policies import (
    OPERATIONS,
    SIGNED,
    apply_operation,
    rand_augment,
    rand_augment_magnitudes,
    trivial_augment_magnitudes,
    trivial_augment_wide,
)
from tests.draws import QUICK, assert_equally_often, random_images
from tests.reference import record_augment

RECORDED = np.load(record_augment.PATH)


def rotated_from_between(angle, height, width):
    """Whether the source of a rotated pixel lies halfway between two pixels or on the image's edge, (H, W)."""
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    sources = np.stack([cosine * x - sine * y + (width - 1) / 2, sine * x + cosine * y + (height - 1) / 2])
    return (np.abs(sources - np.floor(sources) - 0.5) < 1e-4).any(0)


def test_operations_are_those_of_torchvision_in_its_order():
    spelt = tuple("".join(word.title() for word in name.split("_")) for name in OPERATIONS)
    assert spelt == record_augment.OPERATIONS
    assert OPERATIONS[1:10] == SIGNED


# One set of each kind is compiled with all optimizations.
@pytest.mark.parametrize(
    ("name", "options"),
    [("colour", None), ("grey", QUICK), ("places", None), ("odd_places", QUICK), ("scene", QUICK)],
)
def test_each_operation_equals_that_of_torchvision(name, options):
    images = record_augment.images(name)
    cases = RECORDED["cases"][RECORDED["cases"][:, 2] == record_augment.SETS.index(name)]
    operations, magnitudes = cases[:, 0].astype(np.int32), cases[:, 1]
    over_images = jax.vmap(apply_operation, (0, None, None))
    program = jax.jit(jax.vmap(over_images, (None, 0, 0)), compiler_options=options)
    found = np.asarray(program(images, operations, magnitudes))
    assert len(set(operations)) == {"scene": 2, "places": 5, "odd_places": 5}.get(name, 9)
    excused = 0
    for operation, magnitude, output, expected in zip(operations, magnitudes, found, RECORDED[name], strict=True):
        differs = (output != expected).any((0, 3))
        if OPERATIONS[operation] == "rotate":
            # There the last bit of a sine decides, which depends on the machine.
            between = rotated_from_between(magnitude, *differs.shape)
            excused += between.sum()
            differs &= ~between
        assert not differs.any(), (OPERATIONS[operation], magnitude)
    assert excused < 0.01 * found[..., 0].size


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (rand_augment_magnitudes(16, 14), "rand_augment"),
        (rand_augment_magnitudes(224, 224), "rand_augment_224"),
        (trivial_augment_magnitudes(), "trivial_augment"),
    ],
)
def test_magnitudes_are_those_of_torchvision(found, name):
    # The last bit of torch's depends on the machine.
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, RECORDED[name], rtol=2.5e-7)
    for operation in ("translate_x", "translate_y", "posterize"):  # which are truncated
        row = OPERATIONS.index(operation)
        np.testing.assert_array_equal(found[row].astype(int), RECORDED[name][row].astype(int))


PROGRAM = jax.jit(apply_operation, compiler_options=QUICK)


def operate(image, name, magnitude=0.0):
    """Applies an operation by its name; for images of one size, all operations are one program."""
    return np.asarray(PROGRAM(jnp.asarray(image), OPERATIONS.index(name), float(magnitude)))


def test_operations_have_closed_forms():
    image = random_images(7, 7, 3)
    np.testing.assert_array_equal(operate(image, "identity"), image)
    np.testing.assert_array_equal(operate(image, "rotate", 90), np.rot90(image))
    np.testing.assert_array_equal(operate(image, "rotate", -90), np.rot90(image, -1))
    right, up = np.zeros_like(image), np.zeros_like(image)
    right[:, 2:], up[:-3] = image[:, :-2], image[3:]
    np.testing.assert_array_equal(operate(image, "translate_x", 2.9), right)
    np.testing.assert_array_equal(operate(image, "translate_y", -3.2), up)
    sheared_x, sheared_y = np.zeros_like(image), np.zeros_like(image)
    for line in range(7):  # of which the middle is moved by 0.7 (line + 1/2), to the left or up
        shift = int(np.floor(0.7 * (line + 0.5) + 0.5))
        sheared_x[line, : 7 - shift], sheared_y[: 7 - shift, line] = image[line, shift:], image[shift:, line]
    np.testing.assert_array_equal(operate(image, "shear_x", 0.7), sheared_x)
    np.testing.assert_array_equal(operate(image, "shear_y", 0.7), sheared_y)
    np.testing.assert_array_equal(operate(image, "posterize", 3), image & 0b11100000)
    np.testing.assert_array_equal(operate(image, "solarize", 100), np.where(image >= 100, 255 - image, image))
    np.testing.assert_array_equal(operate(image, "brightness", 1), np.minimum(2 * image.astype(int), 255))
    np.testing.assert_array_equal(operate(image, "brightness", -1), np.zeros_like(image))
    assert len(np.unique(operate(image, "contrast", -1))) == 1
    gray = operate(image, "color", -1)
    np.testing.assert_array_equal(gray, gray[..., :1].repeat(3, -1))
    np.testing.assert_allclose(gray[..., 0], image @ np.array([0.2989, 0.587, 0.114]), atol=1)
    smooth, wide = operate(image, "sharpness", -1), image.astype(int)
    np.testing.assert_array_equal(smooth[0], image[0])
    assert smooth[3, 2, 1] == round((wide[2:5, 1:4, 1].sum() + 4 * wide[3, 2, 1]) / 13)


def test_auto_contrast_and_equalize_have_closed_forms():
    steps = np.arange(49, dtype=np.uint8).reshape(7, 7)
    image = np.stack([steps + 20, 5 * steps, np.full((7, 7), 9)], -1).astype(np.uint8)
    stretched = operate(image, "auto_contrast")
    np.testing.assert_allclose(stretched[..., 0], steps * (255 / 48), atol=1)
    np.testing.assert_allclose(stretched[..., 1], 5 * steps * (255 / 240), atol=1)
    np.testing.assert_array_equal(stretched[..., 2], 9)
    np.testing.assert_array_equal(operate(image, "equalize"), image)  # fewer than the 255 pixels of a step


def test_equalize_spreads_values_evenly():
    values = np.repeat(np.array([10, 11, 12, 200], np.uint8), 1024).reshape(64, 64, 1)
    # A step is 3072 // 255 = 12 pixels; below the values are 0, 1024, 2048 and 3072 of them.
    found = np.unique(operate(values, "equalize"))
    np.testing.assert_array_equal(found, [0, (1024 + 6) // 12, (2048 + 6) // 12, 255])


def test_operations_can_be_given_by_name():
    image, flat = jnp.asarray(random_images(7, 7, 3)), jnp.asarray(random_images(2, 5, 1))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def program(image, flat):
        return apply_operation(image, "rotate", 90), apply_operation(flat, "sharpness", 0.5)

    rotated, sharpened = program(image, flat)
    np.testing.assert_array_equal(rotated, np.rot90(image))
    np.testing.assert_array_equal(sharpened, flat)  # all its pixels lie on the edge


def test_mistakes_are_refused():
    key, image = jax.random.key(0), jnp.zeros((4, 4, 3), jnp.uint8)
    with pytest.raises(UserError, match="unknown operation 'sheer_x'; did you mean shear_x"):
        apply_operation(image, "sheer_x", 0.1)
    with pytest.raises(UserError, match="magnitude is 31; it must be from 0 to 30"):
        rand_augment(key, image, magnitude=31)
    with pytest.raises(UserError, match="1 or 3 channels"):
        jax.eval_shape(trivial_augment_wide, key, image[..., :2])


@pytest.fixture
def visible_operations(monkeypatch):
    """Replaces `apply_operation`: it appends the operation to the first of two values, and sets the second to the
    magnitude."""

    def apply(image, operation, magnitude):
        return jnp.stack([image[0] * 14 + operation, jnp.full_like(image[1], magnitude)])

    monkeypatch.setattr(policies, "apply_operation", apply)


def drawn(policy, count):
    """The indices of the operations and the last magnitude, for `count` keys."""
    keys = jax.random.split(jax.random.key(0), count)
    results = jax.jit(jax.vmap(policy, (0, None)), compiler_options=QUICK)(keys, jnp.zeros((2, 1, 1)))
    numbers, magnitudes = np.asarray(results)[:, :, 0, 0].T
    return numbers.astype(int), magnitudes


def test_rand_augment_draws_pairs_of_operations_and_signs(visible_operations):
    numbers, magnitudes = drawn(lambda key, image: rand_augment(key, image, 2, 12), 8000)
    assert_equally_often(np.bincount(numbers, minlength=14 * 14))
    table = rand_augment_magnitudes(2, 1)[:, 12]
    np.testing.assert_array_equal(np.abs(magnitudes), table[numbers % 14])
    for row, name in enumerate(OPERATIONS):
        found = magnitudes[numbers % 14 == row]
        if name in SIGNED:
            assert_equally_often(np.array([(found < 0).sum(), (found > 0).sum()]))
        else:
            assert (found >= 0).all()


def test_trivial_augment_draws_one_operation_of_any_magnitude_and_sign(visible_operations):
    numbers, magnitudes = drawn(trivial_augment_wide, 8000)
    assert_equally_often(np.bincount(numbers, minlength=14))
    table = trivial_augment_magnitudes()
    for row, name in enumerate(OPERATIONS):
        found = magnitudes[numbers == row]
        assert set(np.abs(found)) <= set(table[row])
        if name in SIGNED:
            # The first of the 31 magnitudes is zero, which has no sign.
            assert_equally_often(np.array([(found < 0).sum(), (found > 0).sum()]))
            counts = (np.abs(found)[:, None] == table[row]).sum(0)
            assert_equally_often(counts)
        else:
            assert (found >= 0).all()


def test_an_image_depends_on_its_key_alone_and_not_on_those_beside_it():
    images = jnp.asarray(random_images(24, 8, 9, 3))
    keys, others = (jax.random.split(jax.random.key(seed), 24) for seed in (5, 6))
    together = jax.jit(jax.vmap(rand_augment), compiler_options=QUICK)
    one_by_one = jax.jit(lambda *batch: jax.lax.map(lambda one: rand_augment(*one), batch), compiler_options=QUICK)
    found = np.asarray(together(keys, images))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, one_by_one(keys, images))
    np.testing.assert_array_equal(found, together(keys, images))
    assert (found != together(others, images)).any((1, 2, 3)).mean() > 0.5
