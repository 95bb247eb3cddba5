"""Every network compiles for GPUs and TPUs, as far as that can be seen from a CPU."""

import jax
import jax.numpy as jnp
import pytest

from flaxcnn import create_model, list_models, model_info
from tests.marks import sampled


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sampled(list_models(), every=9))
def test_every_network_and_its_gradient_lower_for_cuda_and_tpu(name, dtype):
    model = create_model(name, dtype=dtype)
    images = jax.ShapeDtypeStruct((2, *model_info(name).input_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    params = variables.pop("params")

    def loss(params, others, images, key):
        logits, updated = model.apply(
            {"params": params, **others}, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return jax.nn.log_softmax(logits)[:, 0].mean(), updated

    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    exported = jax.export.export(step, platforms=("cuda", "tpu"))(params, variables, images, key)
    assert exported.platforms == ("cuda", "tpu")
    assert exported.out_avals[0].dtype == jnp.float32
    kernels = {aval.dtype.name for aval in exported.out_avals if aval.ndim == 4}
    assert kernels == {"float32"}
