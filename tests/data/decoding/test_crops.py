"""Boxes against torchvision's rule and closed distributions; pixels against PIL and against decoding in full."""

import functools
import io
import math

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from flaxcnn.data.decoding import crops
from flaxcnn.data.decoding.crops import (
    BOX_UNIFORMS,
    RESIZED_BOX_UNIFORMS,
    decode_crop,
    random_box,
    random_resized_box,
)
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.decoding.images import decode

IMAGENET = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


@functools.cache
def photograph(width, height, name="china.jpg"):
    return Image.fromarray(load_sample_image(name)).resize((width, height), Image.Resampling.LANCZOS)


@functools.cache
def encoded(width, height, kind="PNG", name="china.jpg"):
    file = io.BytesIO()
    photograph(width, height, name).save(file, kind)
    return file.getvalue()


def fixed(*box):
    return lambda height, width: box


def cut(image, box, reduction=1):
    """The box of an image, its edges moved to the nearest multiples of `reduction`."""
    top, left, height, width = box
    edges = [math.floor(edge / reduction + 0.5) * reduction for edge in (top, top + height, left, left + width)]
    return image[edges[0] : edges[1], edges[2] : edges[3]]


def bilinear(image, size):
    """PIL's antialiased bilinear filter, (H, W, C) to (size, size, C) float."""
    scaled = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    scaled = scaled.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(scaled, float).reshape(size, size, -1)


# Random numbers


def test_uniforms_are_the_scaled_philox_stream():
    raw = np.random.Philox(key=[3, 5], counter=[0, 0, 7, 1]).random_raw(40)
    values = crops.uniforms(3, 5, 7, 40)
    assert values.dtype == np.float64 and values.shape == (40,)
    np.testing.assert_array_equal(values, [(number >> 11) / 2**53 for number in raw.tolist()])
    # The first words of Philox 4x64-10.
    np.testing.assert_array_equal(crops.uniforms(0, 0, 0, 2), [0.34218278474233466, 0.5765144536585864])


def test_uniforms_of_different_seeds_epochs_and_examples_share_nothing():
    streams = [crops.uniforms(*place, 64) for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**40)]]
    order = np.random.Philox(key=[0, 0]).random_raw(10_000)  # of the sampler
    streams.append((order >> np.uint64(11)) * 2.0**-53)
    joined = np.concatenate(streams)
    assert len(np.unique(joined)) == len(joined)
    np.testing.assert_array_equal(crops.uniforms(0, 0, 1, 8), streams[3][:8])


def test_uniforms_are_uniform_and_independent_of_each_other():
    values = np.array([crops.uniforms(0, 0, example, 4) for example in range(4000)])
    assert (values >= 0).all() and (values < 1).all()
    check_uniform(values[:, 0])
    check_uniform(values[:, 3])
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 5 / math.sqrt(4000)
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 5 / math.sqrt(4000)


def check_uniform(values, bins=10):
    """Each bin of [0, 1) holds its fraction of the values to within 5 standard deviations."""
    counts, _ = np.histogram(values, bins, (0, 1))
    assert counts.sum() == len(values)
    assert np.abs(counts - len(values) / bins).max() < 5 * math.sqrt(len(values) / bins * (1 - 1 / bins))


# Boxes


def torchvision_box(height, width, area, ratio, numbers):
    """RandomResizedCrop's rule, with `numbers` as its draws: two for each attempt, then two for the place."""
    numbers, place = list(numbers[:-2]), numbers[-2:]
    for _ in range(10):
        target_area = width * height * (area[0] + numbers.pop(0) * (area[1] - area[0]))
        aspect_ratio = math.exp(math.log(ratio[0]) + numbers.pop(0) * (math.log(ratio[1]) - math.log(ratio[0])))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(place[0] * (height - h + 1)), math.floor(place[1] * (width - w + 1)), h, w
    in_ratio = width / height
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0), (0.05, 0.1)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.5, 0.6), (1.0, 1.0)])
def test_resized_boxes_follow_the_rule_of_torchvision(area, ratio):
    generator = np.random.default_rng(0)
    fallbacks = 0
    for example in range(600):
        height, width = np.exp(generator.uniform(0, math.log(700), 2)).astype(int)
        height, width = max(1, int(height)), max(1, int(width))
        numbers = crops.uniforms(1, 2, example, RESIZED_BOX_UNIFORMS)
        box = random_resized_box(height, width, area, ratio, numbers)
        assert box == torchvision_box(height, width, area, ratio, numbers)
        top, left, box_height, box_width = box
        assert top >= 0 and left >= 0 and box_height > 0 and box_width > 0
        assert top + box_height <= height and left + box_width <= width
        fallbacks += box == torchvision_box(height, width, (2.0, 2.0), ratio, numbers)
    assert fallbacks > 20


def test_area_ratio_and_place_are_uniform_where_every_box_fits():
    side, area, ratio = 10**6, (0.08, 0.56), (3 / 4, 4 / 3)  # 0.56 * 4 / 3 < 1
    boxes = np.array(
        [
            random_resized_box(side, side, area, ratio, crops.uniforms(0, 0, example, RESIZED_BOX_UNIFORMS))
            for example in range(5000)
        ]
    )
    top, left, height, width = boxes.T
    check_uniform((height * width / side**2 - area[0]) / (area[1] - area[0]))
    check_uniform(np.log(width / height / ratio[0]) / math.log(ratio[1] / ratio[0]))
    check_uniform(top / (side - height + 1))
    check_uniform(left / (side - width + 1))
    for first in (top / (side - height + 1), left / (side - width + 1)):
        assert abs(np.corrcoef(first, height * width)[0, 1]) < 5 / math.sqrt(5000)


@pytest.mark.parametrize(
    "height, width, box", [(1, 500, (0, 249, 1, 1)), (500, 1, (249, 0, 1, 1)), (1, 1, (0, 0, 1, 1))]
)
def test_the_narrowest_images_have_a_box(height, width, box):
    assert (
        random_resized_box(height, width, (0.9, 1.0), IMAGENET["ratio"], np.full(RESIZED_BOX_UNIFORMS, 0.5)) == box
    )
    assert random_box(height, width, 224, (256, 256), np.full(BOX_UNIFORMS, 0.5))[2:] == (1, 1)


def test_random_boxes_are_squares_of_the_scaled_size_anywhere():
    size, low, high = 224, 256, 480
    boxes = np.array(
        [
            random_box(3000, 4000, size, (low, high), crops.uniforms(0, 1, example, BOX_UNIFORMS))
            for example in range(5000)
        ]
    )
    top, left, height, width = boxes.T
    np.testing.assert_array_equal(height, width)
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 3000).all() and (left + width <= 4000).all()
    scaled = 3000 * size / height  # a stored pixel is about a tenth of a scaled one
    shorter = np.rint(scaled)
    assert np.abs(scaled - shorter).max() < 0.17
    assert shorter.min() == low and shorter.max() == high
    check_uniform((shorter - low) / (high - low + 1), bins=9)
    check_uniform(top / (3000 - height + 1))
    check_uniform(left / (4000 - width + 1))


def test_a_random_box_of_one_scale_is_exact_and_one_too_large_is_refused():
    assert random_box(512, 768, 224, (256, 256), [0.9, 0.0, 0.0]) == (0, 0, 448, 448)
    assert random_box(512, 768, 224, (256, 256), [0.9, 1 - 1e-9, 1 - 1e-9]) == (64, 320, 448, 448)
    with pytest.raises(ValueError, match="224 pixels does not fit a shorter side of 200"):
        random_box(512, 768, 224, (200, 256), np.zeros(BOX_UNIFORMS))


# Training images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "box, reduction",
    [
        ((3, 7, 300, 290), 4),
        ((10, 201, 150, 181), 2),
        ((0, 0, 427, 640), 4),
        ((60, 31, 360, 340), 4),
        ((5, 9, 61, 300), 1),
        ((1, 5, 66, 61), 1),
        ((0, 0, 60, 50), 1),
    ],
)
def test_a_training_image_is_its_box_scaled(box, reduction, kind, channels):
    file = encoded(640, 427, kind)
    image = decode_crop(file, channels, 61, fixed(*box))
    assert image.shape == (61, 61, channels) and image.dtype == np.uint8 and image.flags.c_contiguous
    expected = bilinear(cut(decode(file, channels), box, reduction), 61)
    assert np.abs(image - expected).mean() < 3
    if max(box[2:]) <= 61:  # everybody enlarges by the same bilinear rule
        assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize(
    "shrinking, worse", [(1.05, 2), (1.2, 1.05), (1.5, 1), (1.8, 1), (2, 1.001), (2.5, 1.2), (3, 1.2), (4, 1)]
)
def test_shrinking_is_about_as_close_to_pil_as_the_averages_of_areas(shrinking, worse):
    size = round(400 / shrinking)
    errors = np.zeros(3)
    for name in ("china.jpg", "flower.jpg"):
        image = np.asarray(photograph(640, 427, name))[:400, :400]
        expected = bilinear(image, size)
        area = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        linear = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        errors += [np.abs(result - expected).mean() for result in (crops._resize(image, size), area, linear)]
    assert errors[0] <= worse * errors[1]
    if shrinking >= 1.2 and shrinking != 2:
        assert errors[0] < 0.7 * errors[2]


@pytest.mark.parametrize(
    "box, size, reduction",
    [
        ((0, 0, 199, 400), 100, 1),
        ((0, 0, 200, 200), 100, 2),
        ((27, 40, 399, 600), 100, 2),
        ((1, 1, 400, 400), 100, 4),
        ((13, 5, 401, 409), 50, 8),
        ((3, 3, 420, 600), 10, 8),
        ((1, 3, 402, 402), 201, 2),
    ],
)
def test_decoding_is_reduced_as_far_as_the_box_keeps_its_pixels(box, size, reduction, monkeypatch):
    decoded, parts = [], []
    resize = crops._resize
    monkeypatch.setattr(crops, "decode", lambda *arguments: decoded.append(arguments[2]) or decode(*arguments))
    monkeypatch.setattr(crops, "_resize", lambda part, size: parts.append(part.shape) or resize(part, size))
    file = encoded(640, 427, "JPEG")
    image = decode_crop(file, 3, size, fixed(*box))
    assert decoded == [reduction]
    assert min(parts[0][:2]) >= size
    part = cut(decode(file, 3), box, reduction)
    assert np.abs(image - cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA).astype(float)).mean() < 3


def test_reduced_decoding_keeps_the_box_in_its_place():
    """A ramp shows where each pixel comes from."""
    ramp = np.linspace(0, 255, 800).round().astype(np.uint8)
    image = np.dstack([np.tile(ramp, (640, 1)), np.tile(ramp[:640, None], (1, 800)), np.full((640, 800), 128)])
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=98, subsampling=0)
    for size in (200, 100, 50, 25):  # read at 1/1, 1/2, 1/4, 1/8
        result = decode_crop(file.getvalue(), 3, size, fixed(160, 240, 320, 400)).astype(float)
        columns = (240 + (np.arange(size) + 0.5) * 400 / size - 0.5) * 255 / 799
        rows = (160 + (np.arange(size) + 0.5) * 320 / size - 0.5) * 255 / 799
        assert np.abs(result[..., 0].mean(0) - columns).max() < 1
        assert np.abs(result[..., 1].mean(1) - rows).max() < 1


@pytest.mark.parametrize("width, height", [(1, 1), (500, 1), (1, 500), (3, 2), (20, 300)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_smallest_images_become_training_images(width, height, kind):
    file = encoded(width, height, kind)
    for example in range(20):
        numbers = crops.uniforms(0, 0, example, RESIZED_BOX_UNIFORMS)
        for choose in (
            functools.partial(random_resized_box, **IMAGENET, uniforms=numbers),
            functools.partial(random_box, size=32, shorter_side=(36, 48), uniforms=numbers[:3]),
        ):
            image = decode_crop(file, 3, 32, choose)
            assert image.shape == (32, 32, 3) and image.flags.c_contiguous
            full = decode(file, 3)
            assert (image >= full.min((0, 1))).all() and (image <= full.max((0, 1))).all()


def test_a_training_image_depends_on_its_arguments_alone():
    def run(example):
        choose = functools.partial(
            random_resized_box, **IMAGENET, uniforms=crops.uniforms(0, 3, example, RESIZED_BOX_UNIFORMS)
        )
        return decode_crop(encoded(640, 427, "JPEG"), 3, 48, choose)

    first, second = run(1), run(2)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(run(1), first)


def test_boxes_count_from_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    photograph(64, 40).transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    seen = []
    image = decode_crop(file.getvalue(), 3, 16, lambda *size: seen.append(size) or (2, 30, 16, 16))
    assert seen == [(40, 64)]
    np.testing.assert_array_equal(image, np.asarray(photograph(64, 40))[2:18, 30:46])


# Test images


def torchvision_test_image(image, shorter_side, size):
    """Resize(shorter_side) and CenterCrop(size)."""
    short, long = sorted(image.size)
    new_long = int(shorter_side * long / short)
    width, height = (shorter_side, new_long) if image.width <= image.height else (new_long, shorter_side)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(image)[top : top + size, left : left + size]


SIZES = [
    (500, 375),
    (375, 500),
    (333, 500),
    (427, 640),
    (640, 427),
    (256, 256),
    (256, 257),
    (259, 256),
    (100, 61),
    (3, 2),
]


@pytest.mark.parametrize("width, height", [*SIZES, (8, 1), (1, 8), (1, 1)])
def test_test_images_are_those_of_torchvision_to_the_last_bit(width, height):
    original = photograph(width, height)
    for shorter_side, size in ((256, 224), (64, 64), (37, 33)):
        image = crops.decode_center_square(encoded(width, height), 3, shorter_side)
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        np.testing.assert_array_equal(image, torchvision_test_image(original, shorter_side, shorter_side))
        edge = (shorter_side - size) // 2
        center = image[edge : edge + size, edge : edge + size]
        np.testing.assert_array_equal(center, torchvision_test_image(original, shorter_side, size))
    jpeg = encoded(width, height, "JPEG")
    expected = torchvision_test_image(Image.open(io.BytesIO(jpeg)), 64, 64)
    assert np.abs(crops.decode_center_square(jpeg, 3, 64) - expected.astype(int)).max() <= 1


def test_gray_test_images_are_those_of_torchvision():
    file = io.BytesIO()
    gray = photograph(500, 375).convert("L")
    gray.save(file, "PNG")
    image = crops.decode_center_square(file.getvalue(), 1, 64)
    np.testing.assert_array_equal(image[..., 0], torchvision_test_image(gray, 64, 64))
    assert image.shape == (64, 64, 1)


@pytest.mark.parametrize("width, height", [(500, 1), (1, 501), (2000, 100), (101, 2000)])
def test_only_the_middle_of_a_very_long_image_is_seen(width, height):
    image = crops.decode_center_square(encoded(width, height), 3, 64)
    expected = torchvision_test_image(photograph(width, height), 64, 64)
    assert np.abs(image - expected.astype(float)).mean() < 2


def test_an_image_of_extreme_shape_does_not_fill_the_memory():
    file = io.BytesIO()
    Image.new("RGB", (1, 900_000), (1, 2, 3)).save(file, "PNG")  # scaled as a whole, 150 GB
    np.testing.assert_array_equal(
        crops.decode_center_square(file.getvalue(), 3, 256), np.full((256, 256, 3), (1, 2, 3))
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_size_images_are_as_stored(channels):
    file = encoded(33, 21)
    for image in (decode_crop(file, channels), crops.decode_center_square(file, channels)):
        np.testing.assert_array_equal(image, decode(file, channels))
        assert image.shape == (21, 33, channels)


def test_bad_images_are_refused():
    half = encoded(33, 21)[:-5]
    with pytest.raises(BadImage, match="truncated"):
        decode_crop(half, 3, 32, fixed(0, 0, 9, 9))
    with pytest.raises(BadImage, match="truncated"):
        crops.decode_center_square(half, 3, 32)
