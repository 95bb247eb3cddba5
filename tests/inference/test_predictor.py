"""The predictor gives the results of the network for any number of images, on all devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn import Predictor, UserError, create_model
from tests.variables import random_images, random_variables


@pytest.fixture(scope="module")
def net():
    # With groups, which a partitioner would gather; logits so small that the softmax does not saturate.
    model = create_model("resnext29_8x64d", depths=(1,), widths=(8,), width_per_group=64, num_classes=7)
    variables = random_variables(model, (1, 8, 8, 3))
    variables["params"]["head"]["kernel"] /= 30
    return model, variables


@pytest.mark.parametrize("number", [0, 37])
def test_every_image_gets_its_logits(net, number):
    assert jax.local_device_count() == 8
    model, variables = net
    images = np.asarray(random_images(number, 8, 8, 3), np.float32)
    predictor = Predictor(model, variables, batch_size=10)
    assert predictor.batch_size == 16
    logits = predictor(images)
    assert isinstance(logits, np.ndarray) and logits.shape == (number, 7) and logits.dtype == np.float32
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(initial=1))
    np.testing.assert_allclose(predictor.probabilities(images), jax.nn.softmax(expected), rtol=1e-3, atol=1e-6)


def test_each_size_of_images_is_traced_once(net):
    sizes = []

    def preprocess(images):
        sizes.append(images.shape)
        return [images.astype(jnp.float32) / 255]

    predictor = Predictor(*net, batch_size=8, preprocess=preprocess)
    for number, size in ((3, 8), (20, 8), (8, 8), (1, 12), (9, 12), (2, 8)):
        predictor(np.zeros((number, size, size, 3), np.uint8))
    assert sizes == [(1, 8, 8, 3), (1, 12, 12, 3)]  # the batch of one device


def test_views_are_averaged_by_their_softmax(net):
    images = np.asarray(random_images(5, 8, 8, 3), np.float32)

    def views(images):
        return [images, images[:, :, ::-1], jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))]

    model, variables = net
    apply = jax.jit(lambda view: jax.nn.softmax(model.apply(variables, view, train=False)))
    expected = sum(apply(view) for view in views(images)) / 3
    assert np.ptp(expected) > 0.1
    actual = Predictor(*net, preprocess=views).probabilities(images)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"have shape \(number, height, width, channels\), got \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "takes normalized images of a floating dtype, got uint8"),
        (np.zeros((2, 8, 8, 4), np.float32), "do not fit the model and images of 8x8x4"),
    ],
)
def test_images_that_cannot_work_are_refused(net, images, message):
    with pytest.raises(UserError, match=message) as refused:
        Predictor(*net)(images)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("batch_size", [0, 2.5])
def test_batch_sizes_that_cannot_work_are_refused(net, batch_size):
    with pytest.raises(UserError, match="batch_size is a whole number above 0"):
        Predictor(*net, batch_size=batch_size)
