"""Networks have the derivatives of the same ones with the operations of JAX and linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import stock
from flaxcnn import create_model
from tests.variables import random_images, random_variables

# Between them every operation that has a gradient of its own; with how many pixels across.
NETS = {
    "alexnet_2012": (71, {"hidden": 8}),
    "resnext50_32x4d": (33, {"depths": (1, 1), "widths": (64, 128)}),
    "densenet121": (33, {"depths": (1, 1)}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "densenet121" else pytest.mark.slow) for name in NETS]
)
def test_gradients_of_each_image_and_curvature_times_a_vector(name, x64):
    size, fields = NETS[name]
    model = create_model(name, num_classes=5, dtype="float64", param_dtype="float64", **fields)
    images = random_images(3, size, size, 3).astype(np.float64)
    variables = random_variables(model, images.shape, dtype=jnp.float64)
    params, statistics = variables.pop("params"), variables
    direction = jax.tree.map(jnp.cos, params)

    def derivatives(model):
        def loss(params, images):
            logits = model.apply({"params": params, **statistics}, images, train=False)
            return -jax.nn.log_softmax(logits)[:, 0].sum()

        def slope(params):
            gradient = jax.grad(loss)(params, images)
            return sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))

        def of_each(params):
            return jax.vmap(lambda image: jax.grad(loss)(params, image[None]))(images)

        return jax.jit(lambda params: (of_each(params), jax.grad(slope)(params)))(params)

    found = derivatives(model)
    with stock.operations():
        expected = derivatives(stock.network(model))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 * np.abs(other).max())
