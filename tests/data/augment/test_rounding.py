"""Rounded arithmetic against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment.rounding import rounded_product, rounded_quotient


def test_products_and_quotients_are_rounded():
    a, b, c = np.random.default_rng(0).uniform(0.5, 2, (3, 10000)).astype(np.float32)
    found = jax.jit(lambda a, b, c: rounded_product(a, b) + c)(a, b, c)
    np.testing.assert_array_equal(found, a * b + c)
    np.testing.assert_array_equal(jax.jit(rounded_quotient)(a, b), a / b)
    for divisor in (6, 255, 50176):
        divide = jax.jit(lambda a, divisor=divisor: rounded_quotient(a, jnp.float32(divisor)))
        np.testing.assert_array_equal(divide(a), a / np.float32(divisor))
