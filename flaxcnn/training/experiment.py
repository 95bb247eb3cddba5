"""The network with its preprocessing and augmentation, as training, evaluation and prediction use them."""

import dataclasses
import functools
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcnn.config import AugmentConfig, TrainConfig, to_steps, validate
from flaxcnn.config.geometry import EvaluationGeometry
from flaxcnn.data.augment.mixup import mix, neighbours
from flaxcnn.data.preprocess import evaluation_inputs, training_input
from flaxcnn.errors import UserError
from flaxcnn.inference.views import Views
from flaxcnn.models import create_model, model_info
from flaxcnn.models.network import Network
from flaxcnn.training.finetune import layer_depths, select
from flaxcnn.training.optimizer import make_optimizer, make_schedule
from flaxcnn.training.state import LoopState, TrainState, create_state, shapes_of_variables
from flaxcnn.training.train_step import Mix, Preprocess

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The network, preprocessing and augmentation that a configuration describes, for a given dataset.

    Attributes:
      config: validated configuration.
      model: the network.
      class_names: names of the dataset's classes, in the order of the labels.
      image_shape: (height, width, channels) of the decoded images in evaluation.
      input_shape: (height, width, channels) of the model input in training.
      preprocess: `preprocess(images, key=key, sample_ids=sample_ids)`, which augments and normalizes uint8 images
        in training; see `make_train_step`.
      views: `views(images)`, which maps uint8 images to a list of model inputs in evaluation: several with
        test-time augmentation.
      mix: `mix(key, images, targets, mask)`, which applies mixup or CutMix, or None; see `make_train_step`.
    """

    config: TrainConfig
    model: Network
    class_names: tuple[str, ...]
    image_shape: Shape
    input_shape: Shape
    preprocess: Preprocess
    views: Views
    mix: Mix | None

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step."""
        return make_schedule(
            self.config.schedule,
            self.config.optimizer.learning_rate,
            total_steps=to_steps(self.config.duration, steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
        )

    def optimizer(self, steps_per_epoch: int = 1, *, is_unfrozen: bool = True) -> optax.GradientTransformation:
        """Returns the optax optimizer; the structure of its state does not depend on the arguments.

        Args:
          steps_per_epoch: number of steps per epoch.
          is_unfrozen: whether parameters are trained that are frozen until `model.unfreeze`.
        """
        frozen, unfreezes = self.config.model.frozen, self.config.model.unfreeze is not None
        decays = self.config.optimizer.layer_decay is not None
        return make_optimizer(
            self.config.optimizer,
            self.schedule(steps_per_epoch),
            self.config.schedule,
            frozen=() if unfreezes else frozen,
            paused=frozen if unfreezes and not is_unfrozen else (),
            depths=layer_depths(self.model, self.input_shape) if decays else None,
        )

    def variable_shapes(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of the network's variables: {"params": ..., "batch_stats": ...}."""
        return shapes_of_variables(self.model, self.input_shape)

    def create_state(self, optimizer: optax.GradientTransformation) -> TrainState:
        """Returns the train state before the first step."""
        return create_state(
            self.model,
            optimizer,
            seed=self.config.seed,
            input_shape=self.input_shape,
            ema=self.config.optimizer.ema_decay > 0,
            loss_scale=self.config.model.dtype == "float16",
        )

    def create_loop_state(self, optimizer: optax.GradientTransformation) -> LoopState:
        """Returns the loop state before the first step."""
        double = self.config.model.dtype == "float64"
        return LoopState.start(self.create_state(optimizer), jnp.float64 if double else jnp.float32)


def make_experiment(config: TrainConfig, class_names: tuple[str, ...], image_shape: Shape) -> Experiment:
    """Builds the network, preprocessing and augmentation of a configuration for a dataset.

    Args:
      config: the configuration, checked by `check_config`.
      class_names: names of the dataset's classes, in the order of the labels.
      image_shape: (height, width, channels) of the decoded images in evaluation.

    Raises:
      UserError: the configuration does not fit the dataset.
    """
    _check_dataset(config, len(class_names), image_shape)
    height, width, channels = image_shape
    if config.data.image_size is not None:
        height = width = config.data.image_size
    input_shape = (height, width, channels)
    model = _build(config, len(class_names))
    if min(height, width) < model.minimum_size:
        raise UserError(
            f"{config.model.name} takes images of at least {model.minimum_size}x{model.minimum_size} pixels, and "
            f"those of {config.data.name} are {height}x{width}; set data.image_size to {model.minimum_size} or more"
        )
    _check_patterns(config, model, input_shape)
    dtype = jnp.dtype(config.model.dtype)
    views = functools.partial(evaluation_inputs, config.data, config.evaluation, dtype=dtype)
    _check_views(config.model.name, model, input_shape, views, image_shape)
    return Experiment(
        config=config,
        model=model,
        class_names=tuple(class_names),
        image_shape=image_shape,
        input_shape=input_shape,
        preprocess=functools.partial(training_input, config.data, config.augment, dtype=dtype),
        views=views,
        mix=_mix(config.augment),
    )


def check_config(config: TrainConfig) -> None:
    """Checks a configuration without its dataset. Raises `UserError` for the first invalid value."""
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


def _check_dataset(config: TrainConfig, num_classes: int, image_shape: Shape) -> None:
    """Raises `UserError` if a configuration does not fit the classes or the images of its dataset."""
    data, (height, width, channels) = config.data, image_shape
    if config.model.num_classes not in (None, num_classes):
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but {data.name} has {num_classes} classes; leave it "
            f"unset"
        )
    for field in ("mean", "std"):
        given, fitting = len(getattr(data, field)), sorted({1, channels})
        if given not in fitting:
            raise UserError(
                f"data.{field} has {given} values, and the images of {data.name} {channels} channels; "
                f"write {' or '.join(map(str, fitting))}"
            )
    geometry = EvaluationGeometry.of(data, config.evaluation)
    smallest = geometry.smallest
    if data.resize == "pad" and smallest is not None and smallest < max(height, width):
        raise UserError(
            f"data.resize is 'pad', but images of {height}x{width} do not fit into {smallest}x{smallest}; write "
            f"'bilinear', or a larger size"
        )
    if config.evaluation.views == "ten_crop" and geometry.crop_size is None:
        raise UserError("evaluation.views is 'ten_crop', which needs a size; set data.image_size")
    if config.augment.lighting and channels != 3:
        raise UserError(f"augment.lighting is for color, and the images of {data.name} are gray")


def _check_patterns(config: TrainConfig, model: nn.Module, input_shape: Shape) -> None:
    """Raises `UserError` if a pattern of layers matches nothing, or if all parameters are frozen."""
    patterns = {"model.frozen": config.model.frozen, "optimizer.multipliers": tuple(config.optimizer.multipliers)}
    if not any(patterns.values()):
        return
    params = shapes_of_variables(model, input_shape)["params"]
    for path, each in patterns.items():
        try:
            chosen = select(params, *each)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if path == "model.frozen" and all(jax.tree.leaves(chosen)):
            raise UserError("model.frozen matches every parameter, so that nothing trains; leave 'head' out of it")


def _check_views(name: str, model: nn.Module, input_shape, views: Views, image_shape) -> None:
    """Raises `UserError` if the network, initialized for the training size, does not fit inputs of evaluation."""
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
