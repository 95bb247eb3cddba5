"""A configuration made concrete: its network, the shapes it works on, and what happens to the pixels."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcnn.config import TrainConfig, to_steps, validate
from flaxcnn.data.preprocess import preprocess
from flaxcnn.errors import UserError
from flaxcnn.models import create_model, model_info
from flaxcnn.training.optimizer import make_optimizer, make_schedule
from flaxcnn.training.state import Carry, TrainState, create_state
from flaxcnn.training.step import Preprocess


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What training, evaluation and prediction have in common.

    Attributes:
      config: the configuration it was made from, valid.
      model: the network.
      class_names: of the data set, in the order of the labels.
      image_shape: (height, width, channels) of the stored images.
      input_shape: (height, width, channels) that the network is fed.
      preprocess: `preprocess(images, keys=None)`, from uint8 to the network's input.
    """

    config: TrainConfig
    model: nn.Module
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    preprocess: Preprocess

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate by step."""
        return make_schedule(
            self.config.schedule,
            self.config.optimizer.learning_rate,
            total_steps=to_steps(self.config.duration, steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
        )

    def optimizer(self, steps_per_epoch: int = 1) -> optax.GradientTransformation:
        """Returns the optimizer; its state has the same structure whatever the steps of an epoch."""
        return make_optimizer(self.config.optimizer, self.schedule(steps_per_epoch))

    def create_state(self, optimizer: optax.GradientTransformation) -> TrainState:
        """Returns the state before the first step."""
        return create_state(
            self.model,
            optimizer,
            seed=self.config.seed,
            input_shape=self.input_shape,
            ema=self.config.optimizer.ema_decay > 0,
            loss_scale=self.config.model.dtype == "float16",
        )

    def create_carry(self, optimizer: optax.GradientTransformation) -> Carry:
        """Returns what the loop starts from."""
        double = self.config.model.dtype == "float64"
        return Carry.start(self.create_state(optimizer), jnp.float64 if double else jnp.float32)


def check_config(config: TrainConfig) -> None:
    """Raises `UserError` for whatever is wrong with a configuration and shows without its data."""
    validate(config)
    if config.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("model.dtype is 'float64', which JAX computes only with JAX_ENABLE_X64=1 set")
    name = config.model.name
    minimum = _build(config, model_info(name).num_classes).minimum_size
    size = config.data.image_size
    if size is not None and size < minimum:
        raise UserError(f"data.image_size is {size}; {name} takes images of at least {minimum}x{minimum} pixels")


def make_experiment(
    config: TrainConfig, class_names: tuple[str, ...], image_shape: tuple[int, int, int]
) -> Experiment:
    """Builds what a configuration describes, on images of a given shape and classes.

    Raises:
      UserError: the configuration cannot work, or not on this data.
    """
    check_config(config)
    data, name = config.data, config.model.name
    height, width, channels = image_shape
    classes = config.model.num_classes or len(class_names)
    if classes != len(class_names):
        raise UserError(
            f"model.num_classes is {classes}, but {data.name} has {len(class_names)} classes; leave it unset"
        )
    for field in ("mean", "std"):
        given, fitting = len(getattr(data, field)), sorted({1, channels})
        if given not in fitting:
            raise UserError(
                f"data.{field} has {given} values, and the images of {data.name} {channels} channels; "
                f"write {' or '.join(map(str, fitting))}"
            )
    if data.resize == "pad" and data.image_size is not None and data.image_size < max(height, width):
        raise UserError(
            f"data.resize is 'pad', but images of {height}x{width} do not fit into data.image_size "
            f"{data.image_size}; write 'bilinear', or a larger size"
        )
    if data.image_size is not None:
        height = width = data.image_size
    model = _build(config, classes)
    minimum = model.minimum_size
    if min(height, width) < minimum:
        raise UserError(
            f"{name} takes images of at least {minimum}x{minimum} pixels, and those of {data.name} are "
            f"{height}x{width}; set data.image_size to {minimum} or more"
        )
    return Experiment(
        config=config,
        model=model,
        class_names=tuple(class_names),
        image_shape=tuple(image_shape),
        input_shape=(height, width, channels),
        preprocess=functools.partial(preprocess, data, dtype=jnp.dtype(config.model.dtype)),
    )


def _build(config: TrainConfig, num_classes: int) -> nn.Module:
    options = config.model.options.to_dict()
    if taken := {"num_classes", "dtype"} & set(options):
        raise UserError(f"model.options.{min(taken)} is written model.{min(taken)}")
    if "bn_axis_name" in options:
        raise UserError("model.options.bn_axis_name is set by parallel.batch_norm; leave it out")
    try:
        return create_model(config.model.name, num_classes=num_classes, dtype=config.model.dtype, **options)
    except UserError as error:
        hint = "; --config.model.options={} leaves all options out" if "has no field" in str(error) else ""
        raise UserError(f"model.options: {error}{hint}") from None
