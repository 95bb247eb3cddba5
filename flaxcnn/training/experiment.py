"""A configuration made concrete: its network, the shapes it works on, and what happens to the pixels."""

import dataclasses
import functools

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcnn.config import AugmentConfig, TrainConfig, to_steps, validate
from flaxcnn.data.mixing import mix, neighbours
from flaxcnn.data.preprocess import evaluation_inputs, training_input
from flaxcnn.errors import UserError
from flaxcnn.inference.prediction import Views
from flaxcnn.models import create_model, model_info
from flaxcnn.models.layers import Network
from flaxcnn.training.optimizer import make_optimizer, make_schedule
from flaxcnn.training.state import Carry, TrainState, create_state
from flaxcnn.training.step import Mix, Preprocess


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What training, evaluation and prediction have in common.

    Attributes:
      config: the configuration it was made from, valid.
      model: the network.
      class_names: of the data set, in the order of the labels.
      image_shape: (height, width, channels) of the images as they reach the device in evaluation.
      input_shape: (height, width, channels) that the network is fed in training.
      preprocess: `preprocess(images, key=key, visits=visits)`, from uint8 to the network's input in training.
      views: `views(images)`, from uint8 to the network's inputs in evaluation.
      mix: `mix(key, images, targets, mask)`, or None where images are not mixed.
    """

    config: TrainConfig
    model: Network
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    preprocess: Preprocess
    views: Views
    mix: Mix | None

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
        return make_optimizer(self.config.optimizer, self.schedule(steps_per_epoch), self.config.schedule)

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
    if config.model.dtype == "float64" and jnp.result_type(float) != jnp.float64:
        raise UserError("model.dtype is 'float64', which JAX computes only with JAX_ENABLE_X64=1 set")
    name = config.model.name
    minimum = _build(config, model_info(name).num_classes).minimum_size
    sizes = {"data.image_size": config.data.image_size, "evaluation.image_size": config.evaluation.image_size}
    sizes |= {f"evaluation.scales[{index}]": scale for index, scale in enumerate(config.evaluation.scales)}
    for path, size in sizes.items():
        if size is not None and size < minimum:
            raise UserError(f"{path} is {size}; {name} takes images of at least {minimum}x{minimum} pixels")


def make_experiment(
    config: TrainConfig, class_names: tuple[str, ...], image_shape: tuple[int, int, int]
) -> Experiment:
    """Builds what a configuration describes, on images of a given shape and classes.

    Raises:
      UserError: the configuration cannot work, or not on this data.
    """
    check_config(config)
    data, evaluation, name = config.data, config.evaluation, config.model.name
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
    sizes = (data.image_size, evaluation.image_size, evaluation.shorter_side, *evaluation.scales)
    smallest = min(filter(None, sizes), default=None)
    if data.resize == "pad" and smallest is not None and smallest < max(height, width):
        raise UserError(
            f"data.resize is 'pad', but images of {height}x{width} do not fit into {smallest}x{smallest}; write "
            f"'bilinear', or a larger size"
        )
    if data.image_size is not None:
        height = width = data.image_size
    if evaluation.views == "ten_crop" and (evaluation.image_size or data.image_size) is None:
        raise UserError("evaluation.views is 'ten_crop', which needs a size; set data.image_size")
    if config.augment.lighting and channels != 3:
        raise UserError(f"augment.lighting is for colour, and the images of {data.name} are grey")
    model = _build(config, classes)
    minimum = model.minimum_size
    if min(height, width) < minimum:
        raise UserError(
            f"{name} takes images of at least {minimum}x{minimum} pixels, and those of {data.name} are "
            f"{height}x{width}; set data.image_size to {minimum} or more"
        )
    dtype = jnp.dtype(config.model.dtype)
    views = functools.partial(evaluation_inputs, data, evaluation, dtype=dtype)
    _check_views(name, model, (height, width, channels), views, image_shape)
    return Experiment(
        config=config,
        model=model,
        class_names=tuple(class_names),
        image_shape=image_shape,
        input_shape=(height, width, channels),
        preprocess=functools.partial(training_input, data, config.augment, dtype=dtype),
        views=views,
        mix=_mix(config.augment),
    )


def _check_views(name: str, model: nn.Module, input_shape, views: Views, image_shape) -> None:
    """Raises `UserError` if the network, made for the size of training, cannot take the views of evaluation."""
    shapes = {view.shape for view in jax.eval_shape(views, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))}
    others = shapes - {(1, *input_shape)}
    if not others:
        return
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    for shape in sorted(others):
        view = jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            jax.eval_shape(functools.partial(model.apply, train=False), variables, view)
        except flax.errors.ScopeParamShapeError:
            raise UserError(
                f"evaluation shows {name} {shape[1]}x{shape[2]} pixels; trained on "
                f"{input_shape[0]}x{input_shape[1]}, it takes no others, because its classifier does not pool"
            ) from None


def _mix(config: AugmentConfig) -> Mix | None:
    if not (config.mixup or config.cutmix):
        return None

    def mix_batch(key: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array):
        images, targets = mix(key, images, targets, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)
        return images, targets, mask * neighbours(mask)

    return mix_batch


def _build(config: TrainConfig, num_classes: int) -> Network:
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
