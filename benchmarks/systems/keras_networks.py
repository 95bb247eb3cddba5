"""The networks of keras.applications, on JAX, as a system, by `stateless_call`."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras

from benchmarks.systems.jax_system import JaxSystem, count, random_batch, textbook_step
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

    def forward(trainable, others, images):
        return model.stateless_call(trainable, others, images, training=True)

    # Copies, because the step uses its state up, and the model still holds these.
    step, state = textbook_step(forward, *jax.tree.map(jnp.copy, (trainable, others)))
    return JaxSystem(task, step, state, (images, labels), **common)


if __name__ == "__main__":
    serve(prepare)
