"""flaxcnn's networks as a system, with its own operations and step, and with the stock ones of Flax and optax."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

import flaxcnn
from benchmarks import stock
from benchmarks.systems.jax_system import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    JaxSystem,
    count,
    random_batch,
    textbook_step,
)
from benchmarks.systems.serve import System, Task, serve
from flaxcnn.config import ModelConfig, OptimizerConfig, TrainConfig
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.training.setup import make_experiment
from flaxcnn.training.train_step import make_train_step

PACKAGES = ("flax", "jax", "jaxlib", "optax")


class OursTraining(JaxSystem):
    """The step of train.py, on uint8 images, compiled as train.py compiles it."""

    def __init__(self, task: Task):
        config = TrainConfig(
            batch_size=task.batch,
            model=ModelConfig(name=task.network, dtype=task.dtype),
            optimizer=OptimizerConfig(
                learning_rate=LEARNING_RATE,
                momentum=MOMENTUM,
                weight_decay=WEIGHT_DECAY,
                bias_weight_decay=WEIGHT_DECAY,
                norm_weight_decay=WEIGHT_DECAY,
            ),
        )
        experiment = make_experiment(config, tuple(map(str, range(task.num_classes))), task.image_shape)
        optimizer = experiment.optimizer()
        self.strategy = Strategy()
        self.train_step = make_train_step(experiment.model, optimizer, experiment.preprocess)
        images, labels = random_batch(task, "uint8")
        batch = {"image": images, "label": labels, "mask": np.ones(task.batch, np.float32)}
        _, create = self.strategy.creation(lambda: experiment.create_state(optimizer))
        state = create()
        inputs = (self.strategy.shard(batch),)
        super().__init__(task, None, state, inputs, parameters=count(state.params), packages=PACKAGES)

    def run(self, steps: int) -> None:
        """Runs steps one after another and waits for the last; the first call compiles."""
        if self.step is None:
            arguments = (self.carry, *self.inputs)
            self.step = self.strategy.compile(self.train_step, arguments, sharded=(1,), donate=(0,))
        super().run(steps)

    def compiled(self) -> jax.stages.Compiled:
        """Returns the program of a step."""
        return self.step.compiled


class FlaxSystem(JaxSystem):
    """A network with a textbook's step, or `model.apply`, jitted.

    With `operations` "stock" the network's operations are those of Flax and JAX, and its logits must be ours.
    """

    def __init__(self, task: Task, operations: str):
        self.ours = flaxcnn.create_model(task.network, num_classes=task.num_classes, dtype=task.dtype)
        images, labels = map(jnp.asarray, random_batch(task, "float32"))
        variables = jax.jit(lambda: self.ours.init(jax.random.key(0), images[:1], train=False))()
        parameters = count(variables["params"])
        model = self.ours
        self.replaced = contextlib.ExitStack()
        if operations == "stock":
            # For as long as the process lives: JAX traces when a function is first called.
            self.replaced.enter_context(stock.operations())
            model = stock.network(self.ours)
        self.model = model
        if task.mode == "inference":
            step = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
            super().__init__(task, step, variables, (images,), parameters=parameters, packages=PACKAGES)
            return

        def forward(params, others, images):
            logits, updated = model.apply(
                {**others["variables"], "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(jax.random.key(1), others["step"])},
            )
            return logits, {"step": others["step"] + 1, "variables": updated}

        params = variables.pop("params")
        step, state = textbook_step(forward, params, {"step": jnp.zeros((), jnp.int32), "variables": variables})
        super().__init__(task, step, state, (images, labels), parameters=parameters, packages=PACKAGES)

    def check(self) -> None:
        """Raises `AssertionError` unless the logits of an image, in float32, are ours to 1e-4."""
        if self.model is self.ours or self.task.mode == "training" or self.task.batch > 1:
            return  # once a network is enough

        def logits(model):
            exact = model.clone(dtype=jnp.float32)
            return jax.jit(lambda variables, images: exact.apply(variables, images, train=False))(
                self.carry, *self.inputs
            )

        result = logits(self.model)
        self.replaced.close()
        stock.assert_close(result, logits(self.ours), 1e-4)


def prepare(task: Task) -> System:
    """Prepares "ours" or "stock"."""
    if task.system == "ours" and task.mode == "training":
        return OursTraining(task)
    return FlaxSystem(task, "ours" if task.system == "ours" else "stock")


if __name__ == "__main__":
    serve(prepare)
