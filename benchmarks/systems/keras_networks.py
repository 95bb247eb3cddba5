"""The networks of keras.applications, on JAX, as a system: a jitted step by `stateless_call` and optax."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import optax

from benchmarks.systems.jax_system import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    JaxSystem,
    count,
    random_batch,
)
from benchmarks.systems.serve import Absent, System, Task, serve

NETWORKS = {
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
}


def prepare(task: Task) -> System:
    """Prepares "keras"."""
    if task.network not in NETWORKS:
        raise Absent("not in keras.applications")
    keras.config.set_dtype_policy("mixed_bfloat16" if task.dtype == "bfloat16" else "float32")
    model = getattr(keras.applications, NETWORKS[task.network])(
        weights=None, input_shape=task.image_shape, classes=task.num_classes, classifier_activation=None
    )
    images, labels = map(jnp.asarray, random_batch(task, "float32"))
    trainable, others = (
        [v.value for v in kind] for kind in (model.trainable_variables, model.non_trainable_variables)
    )
    common = {"parameters": count(trainable), "packages": ("jax", "jaxlib", "keras")}
    if task.mode == "inference":
        step = jax.jit(lambda carry, images: model.stateless_call(*carry, images, training=False)[0])
        return JaxSystem(task, step, (trainable, others), (images,), **common)
    optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))

    def train_step(state, images, labels):
        trainable, others, momentum = state

        def loss(trainable):
            logits, updated = model.stateless_call(trainable, others, images, training=True)
            logits = logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        updates, momentum = optimizer.update(gradients, momentum, trainable)
        return (optax.apply_updates(trainable, updates), others, momentum), value

    # Copies, because the step uses its state up, and the model still holds these.
    state = jax.tree.map(jnp.copy, (trainable, others, optimizer.init(trainable)))
    return JaxSystem(task, jax.jit(train_step, donate_argnums=0), state, (images, labels), **common)


if __name__ == "__main__":
    serve(prepare)
