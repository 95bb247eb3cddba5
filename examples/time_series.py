"""Classifies time series by a network for images: each becomes an image of two Gramian angular fields.

    python examples/time_series.py

Accuracy 0.995 on 3,000 held-out series after training on 300, the mean of seeds 0, 1 and 2 (0.995, 0.998, 0.993),
in about 35 seconds of one CPU core, of which half is compiling.

The problem is "cylinder, bell, funnel": Saito, "Local Feature Extraction and Its Applications Using a Library of
Bases", PhD thesis, Yale University, 1994. It is drawn anew from its definition, so that nothing is downloaded.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flaxcnn
from flaxcnn.config import OptimizerConfig, ScheduleConfig
from flaxcnn.data import evaluation_indices, training_indices
from flaxcnn.data.time_series import (
    gramian_difference_field,
    gramian_summation_field,
    min_max_scale,
    piecewise_aggregate,
)
from flaxcnn.training.losses import cross_entropy
from flaxcnn.training.optimizer import make_optimizer, make_schedule

LENGTH = 128
IMAGE_SIZE = 32
TRAINING_SERIES = 300
TEST_SERIES = 3000
BATCH_SIZE = 30


def cylinder_bell_funnel(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws series (count, 128) float32 and labels (count,) int32: 0 cylinder, 1 bell, 2 funnel, equally many.

    With t = 1 ... 128, an onset a and a duration b - a that are uniform among the integers 16 to 32 and 32 to 96,
    and eta and all epsilon(t) standard normal, a series is, for a <= t <= b,

      (6 + eta) + epsilon(t),   (6 + eta) (t - a) / (b - a) + epsilon(t),   (6 + eta) (b - t) / (b - a) + epsilon(t)

    for the three classes, and epsilon(t) elsewhere.
    """
    labels = np.arange(count, dtype=np.int32) % 3
    onset = generator.integers(16, 32, (count, 1), endpoint=True)
    duration = generator.integers(32, 96, (count, 1), endpoint=True)
    height = 6 + generator.normal(size=(count, 1))
    passed = (np.arange(1, LENGTH + 1) - onset) / duration
    shape = np.choose(labels[:, None], [np.ones_like(passed), passed, 1 - passed])
    inside = (passed >= 0) & (passed <= 1)
    series = height * shape * inside + generator.normal(size=(count, LENGTH))
    return series.astype(np.float32), labels


def images(series: jax.Array) -> jax.Array:
    """Turns series (B, T) into images (B, IMAGE_SIZE, IMAGE_SIZE, 2): the summation and the difference field."""
    scaled = min_max_scale(piecewise_aggregate(series, IMAGE_SIZE))
    return jnp.stack([gramian_summation_field(scaled), gramian_difference_field(scaled)], axis=-1)


def train(seed: int = 0, epochs: int = 10) -> float:
    """Trains LeNet-5 with BatchNorm, prints its accuracy each epoch, and returns the last one."""
    series, labels = cylinder_bell_funnel(np.random.default_rng([seed, 0]), TRAINING_SERIES)
    test_series, test_labels = cylinder_bell_funnel(np.random.default_rng([seed, 1]), TEST_SERIES)

    model = flaxcnn.create_model("lenet5", num_classes=3, activation="relu", pooling="max", norm="batch_norm")
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(seed), jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 2)))
    steps = TRAINING_SERIES // BATCH_SIZE
    schedule = make_schedule(ScheduleConfig(name="cosine"), 0.05, total_steps=epochs * steps, steps_per_epoch=steps)
    optimizer = make_optimizer(OptimizerConfig(momentum=0.9, weight_decay=5e-4), schedule)
    opt_state = optimizer.init(variables["params"])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(variables, opt_state, series, labels):
        def loss(params):
            logits, updated = model.apply(
                {**variables, "params": params}, images(series), train=True, mutable=["batch_stats"]
            )
            return cross_entropy(logits, labels).mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(gradients, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, opt_state

    @jax.jit
    def count_correct(variables, series, labels, mask):
        logits = model.apply(variables, images(series), train=False)
        return ((logits.argmax(axis=-1) == labels) * mask).sum()

    for epoch in range(epochs):
        for step in range(steps):
            chosen = training_indices(seed, epoch, step, batch_size=BATCH_SIZE, num_examples=TRAINING_SERIES)
            variables, opt_state = train_step(variables, opt_state, series[chosen], labels[chosen])
        correct = sum(
            float(count_correct(variables, test_series[batch.indices], test_labels[batch.indices], batch.mask))
            for batch in evaluation_indices(TEST_SERIES, 512)
        )
        accuracy = correct / TEST_SERIES
        print(f"epoch {epoch + 1}: accuracy {accuracy:.4f} on {TEST_SERIES} held-out series")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    print(f"final accuracy {train(arguments.seed, arguments.epochs):.4f}")
