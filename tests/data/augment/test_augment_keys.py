"""The result for an image depends on its key alone, not on the rest of the batch."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment.color import color_jitter
from flaxcnn.data.augment.erasing import random_erasing
from flaxcnn.data.augment.geometry import random_crop
from tests.draws import QUICK, random_images


def test_an_image_depends_on_its_key_alone_and_not_on_those_beside_it():
    images = jnp.asarray(random_images(4, 9, 8, 3))
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
