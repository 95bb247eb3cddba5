"""The configuration of a run: a tree of typed dataclasses, their meanings, and their validation.

Every leaf can be overridden by a flag, `--config.optimizer.learning_rate=0.1`. A duration is text, a number of
epochs or steps: "10 epochs", "0.5 epochs", "400 steps".
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flaxcnn.errors import UserError, nearest


def _option(default: Any, meaning: str, *, choices: tuple = (), minimum: float | None = None) -> Any:
    """A leaf: its default, one line on its meaning, and the values that can work."""
    metadata = {"meaning": meaning, "choices": choices, "minimum": minimum}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class ModelConfig:
    """Which network."""

    name: str = _option("lenet5", "a name from flaxcnn.list_models()")
    num_classes: int | None = _option(None, "classes; unset takes the data set's", minimum=1)
    dtype: str = _option("float32", "of the computation", choices=("float32", "bfloat16", "float16", "float64"))
    options: ConfigDict = _option(ConfigDict, "further fields of the module, such as activation or norm")


@dataclasses.dataclass
class DataConfig:
    """Which images, and how they reach the device."""

    name: str = _option("digits", "a TFDS set, as name, name/config or name:version; or folder:PATH")
    data_dir: str | None = _option(None, "where prepared sets lie; unset takes TFDS's own folder")
    train_split: str = _option("train", "split to train on, such as train or train[:90%]")
    test_split: str = _option("test", "split to evaluate on")
    loading: str = _option(
        "auto",
        "memory decodes a set once, stream each picture at its turn; auto streams what does not fit",
        choices=("auto", "memory", "stream"),
    )
    workers: int | None = _option(None, "processes that decode a stream; unset takes one a core", minimum=0)
    bad_images: str = _option(
        "stop", "what a picture that cannot be read does to the run; skip counts them", choices=("stop", "skip")
    )
    image_size: int | None = _option(None, "height and width fed to the network; unset as stored", minimum=1)
    resize: str = _option(
        "bilinear",
        "how decoded images reach image_size on the device; pad centres them on black",
        choices=("bilinear", "bicubic", "nearest", "pad"),
    )
    crop: str = _option(
        "center", "what a stream trains on of a picture", choices=("center", "random", "random_resized")
    )
    crop_area: tuple[float, ...] = _option((0.08, 1.0), "random_resized: smallest and largest share of the area")
    crop_ratio: tuple[float, ...] = _option((3 / 4, 4 / 3), "random_resized: width by height")
    shorter_side: tuple[int, ...] = _option(
        (), "random: pixels, or a range drawn from, before the crop; (256, 480)"
    )
    mean: tuple[float, ...] = _option((0.0,), "subtracted from pixels scaled to 0..1, one or one a channel")
    std: tuple[float, ...] = _option((1.0,), "divides pixels after the mean, one or one a channel")


@dataclasses.dataclass
class AugmentConfig:
    """What happens to training images on the device, in this order."""

    crop_padding: int = _option(0, "pad by so many pixels and crop at random", minimum=0)
    crop_fill: str = _option("black", "what crop_padding pads with", choices=("black", "reflect"))
    translation: float = _option(0.0, "shift by up to this share of the size, on black", minimum=0.0)
    flip: str = _option(
        "none",
        "mirror left to right half the time, or half of the images in every other epoch and the rest in between",
        choices=("none", "random", "alternating"),
    )
    policy: str = _option("none", "of drawn operations", choices=("none", "rand_augment", "trivial_augment_wide"))
    policy_operations: int = _option(2, "rand_augment: operations an image", minimum=1)
    policy_magnitude: int = _option(9, "rand_augment: strength, 0 to 30", minimum=0)
    color_jitter: tuple[float, ...] = _option((), "brightness, contrast, saturation, hue; (0.4, 0.4, 0.4, 0.1)")
    lighting: float = _option(0.0, "deviation of noise along the principal components of colour", minimum=0.0)
    erasing: float = _option(0.0, "share of the images of which a rectangle is erased", minimum=0.0)
    mixup: float = _option(0.0, "alpha of mixup; 0 for none", minimum=0.0)
    cutmix: float = _option(0.0, "alpha of cutmix, which takes turns with mixup; 0 for none", minimum=0.0)


@dataclasses.dataclass
class OptimizerConfig:
    """Stochastic gradient descent with momentum and coupled weight decay."""

    learning_rate: float = _option(0.1, "peak learning rate; the schedule scales it", minimum=0.0)
    momentum: float = _option(0.9, "share of the velocity kept a step", minimum=0.0)
    nesterov: bool = _option(False, "look-ahead momentum")
    weight_decay: float = _option(0.0, "times the weights, added to the gradient before momentum", minimum=0.0)
    bias_weight_decay: float = _option(0.0, "the same for biases of layers", minimum=0.0)
    norm_weight_decay: float = _option(0.0, "the same for scales and offsets of normalisation", minimum=0.0)
    clip_norm: float | None = _option(None, "longest gradient, by global norm, before weight decay", minimum=0.0)
    ema_decay: float = _option(0.0, "share of the averaged parameters kept a step; 0 keeps no average", minimum=0.0)


@dataclasses.dataclass
class ScheduleConfig:
    """How the learning rate changes, as a factor of optimizer.learning_rate, step by step."""

    name: str = _option(
        "constant",
        "shape after the warm-up",
        choices=("constant", "step", "multi_step", "cosine", "polynomial", "plateau"),
    )
    warmup: str = _option("0 epochs", "duration of the linear rise at the start")
    warmup_factor: float = _option(0.0, "factor at the first step of the warm-up", minimum=0.0)
    every: str = _option("30 epochs", "step: duration between falls, from the start of the run")
    milestones: tuple[str, ...] = _option((), "multi_step: durations from the start of the run")
    patience: int = _option(10, "plateau: evaluations without a better accuracy before a fall", minimum=1)
    factor: float = _option(0.1, "step, multi_step, plateau: multiplies the rate at each fall", minimum=0.0)
    final_factor: float = _option(0.0, "cosine, polynomial: factor at the end", minimum=0.0)
    power: float = _option(1.0, "polynomial: exponent", minimum=0.0)


@dataclasses.dataclass
class ParallelConfig:
    """How a step is spread over devices, and on each of them over time."""

    strategy: str = _option(
        "auto",
        "jit uses one device; auto is jit on one and shard_map on several",
        choices=("auto", "jit", "shard_map", "pmap"),
    )
    batch_norm: str = _option(
        "synchronized", "over the batch of all devices, or of each its own", choices=("synchronized", "local")
    )
    micro_batches: int | None = _option(
        1, "parts a device takes its share in, one after another; unset finds how many fit", minimum=1
    )


@dataclasses.dataclass
class EvaluationConfig:
    """When and how the test split is evaluated; it always is at the end."""

    every: str = _option("1 epochs", "duration between evaluations")
    batch_size: int = _option(512, "images at a time; changes no accuracy", minimum=1)
    image_size: int | None = _option(None, "height and width fed to the network; unset as in training", minimum=1)
    shorter_side: int | None = _option(
        None, "pixels that a picture is scaled to before the views are cut; unset as image_size", minimum=1
    )
    views: str = _option(
        "center",
        "whose softmax is averaged; flip adds the mirror image, ten_crop corners and mirror images",
        choices=("center", "flip", "ten_crop"),
    )
    scales: tuple[int, ...] = _option(
        (), "sizes at which the central square is seen, softmax averaged; (224, 256, 288)"
    )


@dataclasses.dataclass
class CheckpointConfig:
    """When checkpoints are written; one always is at the end."""

    every: str = _option("1 epochs", "duration between checkpoints")
    keep: int = _option(2, "newest checkpoints kept, beside the best", minimum=1)


@dataclasses.dataclass
class LoggingConfig:
    """What is recorded along the way."""

    every: str = _option("100 steps", "duration between training records, and at each end of epoch")
    profile: tuple[int, ...] = _option((), "first and last step of a profiler trace, such as (10, 20)")


@dataclasses.dataclass
class TrainConfig:
    """One run of training."""

    seed: int = _option(0, "of initial parameters, order of examples, augmentation and dropout", minimum=0)
    batch_size: int = _option(128, "images a step, over all devices", minimum=1)
    duration: str = _option("10 epochs", "length of the run")
    label_smoothing: float = _option(0.0, "share of the target spread over all classes", minimum=0.0)
    model: ModelConfig = _option(ModelConfig, "which network")
    data: DataConfig = _option(DataConfig, "which images")
    augment: AugmentConfig = _option(AugmentConfig, "what happens to training images")
    optimizer: OptimizerConfig = _option(OptimizerConfig, "how parameters move")
    schedule: ScheduleConfig = _option(ScheduleConfig, "how the learning rate changes")
    parallel: ParallelConfig = _option(ParallelConfig, "how a step is spread over devices")
    evaluation: EvaluationConfig = _option(EvaluationConfig, "when the test split is evaluated")
    checkpoint: CheckpointConfig = _option(CheckpointConfig, "when checkpoints are written")
    logging: LoggingConfig = _option(LoggingConfig, "what is recorded")


@functools.cache  # the loop asks at every step
def to_steps(duration: str, steps_per_epoch: int) -> int:
    """Returns a duration ("10 epochs", "400 steps") as a whole number of steps, fractions of one rounded up."""
    amount, is_epochs = _parse_duration(duration)
    # Rounded first, because 0.1 * 30 is a little more than 3.
    return math.ceil(round(amount * steps_per_epoch, 6)) if is_epochs else int(amount)


def _parse_duration(duration: str) -> tuple[float, bool]:
    amount, _, unit = duration.strip().partition(" ")
    try:
        number = float(amount)
        if unit.rstrip("s") not in ("epoch", "step") or not 0 <= number < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(f'{duration!r} is not a duration; write "10 epochs" or "400 steps"') from None
    if unit.startswith("step") and number != int(number):
        raise UserError(f"{duration!r} is not a whole number of steps")
    return number, unit.startswith("epoch")


def validate(config: TrainConfig) -> None:
    """Raises `UserError` for the first leaf whose type or value cannot work, naming it and what would."""
    for path, field, value in _leaves(config):
        _check_type(path, field.type, value)
        if value is None:
            continue
        choices, minimum = field.metadata["choices"], field.metadata["minimum"]
        if choices and value not in choices:
            raise UserError(f"{path} is {value!r}{nearest(value, choices)}; write one of {', '.join(choices)}")
        if minimum is not None and not value >= minimum:
            raise UserError(f"{path} is {value}; it must be {minimum} or more")
    positive = ("schedule.every", "duration", "evaluation.every", "checkpoint.every", "logging.every")
    milestones = [f"schedule.milestones[{index}]" for index in range(len(config.schedule.milestones))]
    for path in (*positive, "schedule.warmup", *milestones):
        try:
            amount, _ = _parse_duration(get_leaf(config, path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if path in positive and not amount:
            raise UserError(f"{path} is {get_leaf(config, path)!r}; it must be longer than nothing")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"label_smoothing is {config.label_smoothing}; it must be 0 or more and below 1")
    if config.seed >= 2**63:
        raise UserError(f"seed is {config.seed}; it must be below 2**63")
    for path in ("optimizer.momentum", "optimizer.ema_decay"):
        if not get_leaf(config, path) < 1:
            raise UserError(f"{path} is {get_leaf(config, path)}; it must be below 1")
    profile = config.logging.profile
    if profile and not (len(profile) == 2 and 1 <= profile[0] <= profile[1]):
        raise UserError(f"logging.profile is {profile}; write the first and the last step, such as (10, 20), or ()")
    _check_input(config)
    if 0.0 in config.data.std:
        raise UserError("data.std holds a 0, by which pixels cannot be divided")
    if config.schedule.name == "multi_step" and not config.schedule.milestones:
        raise UserError("schedule.name is 'multi_step' but schedule.milestones is empty; write ('30 epochs',)")


def _check_input(config: TrainConfig) -> None:
    data, augment, evaluation = config.data, config.augment, config.evaluation
    if data.crop != "center" and data.image_size is None:
        raise UserError(f"data.crop is {data.crop!r}, which needs a size; set data.image_size, such as 224")
    for path in ("data.crop_area", "data.crop_ratio"):
        low_high = get_leaf(config, path)
        if not (len(low_high) == 2 and 0 < low_high[0] <= low_high[1]) or (
            path.endswith("area") and low_high[1] > 1
        ):
            raise UserError(f"{path} is {low_high}; write the smallest and the largest, such as (0.5, 1.0)")
    side, size = data.shorter_side, data.image_size
    if data.crop == "random" and not (len(side) in (1, 2) and side[0] <= side[-1] and side[0] >= size):
        raise UserError(
            f"data.shorter_side is {side}; data.crop 'random' takes ({size},) or a range such as "
            f"({size}, {size * 2}), of {size} or more"
        )
    if side and data.crop != "random":
        raise UserError(
            "data.shorter_side is for data.crop 'random'; evaluation has its own, evaluation.shorter_side"
        )
    if augment.crop_padding and augment.translation:
        raise UserError("augment.crop_padding and augment.translation both move the image; choose one")
    if not augment.translation <= 1:
        raise UserError(f"augment.translation is {augment.translation}; it is a share of the size, at most 1")
    if not augment.erasing <= 1:
        raise UserError(f"augment.erasing is {augment.erasing}; it is a share of the images, at most 1")
    if augment.policy_magnitude > 30:
        raise UserError(f"augment.policy_magnitude is {augment.policy_magnitude}; it must be 30 or less")
    jitter = augment.color_jitter
    if jitter and not (len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5):
        raise UserError(
            f"augment.color_jitter is {jitter}; write four strengths, (0.4, 0.4, 0.4, 0.1), the hue's at most 0.5"
        )
    if evaluation.scales and evaluation.views == "ten_crop":
        raise UserError("evaluation.scales shows whole pictures and 'ten_crop' parts of them; choose one")
    if evaluation.scales and (evaluation.image_size or evaluation.shorter_side):
        raise UserError("evaluation.scales takes the place of evaluation.image_size and evaluation.shorter_side")
    if any(scale < 1 for scale in evaluation.scales):
        raise UserError(f"evaluation.scales is {evaluation.scales}; sizes are 1 or more")
    seen = evaluation.image_size or data.image_size
    if evaluation.views == "ten_crop" and seen is not None and (evaluation.shorter_side or 0) <= seen:
        raise UserError(
            f"evaluation.views is 'ten_crop' of {seen} pixels, which differ only in a larger picture; set "
            f"evaluation.shorter_side, such as {seen * 8 // 7}"
        )
    if evaluation.shorter_side is not None and (seen is None or evaluation.shorter_side < seen):
        raise UserError(
            f"evaluation.shorter_side is {evaluation.shorter_side}; write {seen}, the size cut out, or more"
            if seen
            else "evaluation.shorter_side needs a size to cut out; set data.image_size"
        )
    if config.schedule.name == "plateau" and not 0 < config.schedule.factor < 1:
        raise UserError(f"schedule.factor is {config.schedule.factor}; for 'plateau' it lies between 0 and 1")


def get_leaf(config: Any, path: str) -> Any:
    """Returns the value at a dotted path, such as "schedule.milestones[0]"."""
    for part in path.replace("]", "").replace("[", ".").split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


def _leaves(config: Any, prefix: str = ""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(field.type):
            if not isinstance(value, field.type):
                raise UserError(f"{prefix}{field.name} takes a {field.type.__name__}, got {value!r}")
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, value


def leaf_paths(config: Any) -> list[str]:
    """Returns the dotted paths of all leaves."""
    return [path for path, _, _ in _leaves(config)]


def leaf_type(config: Any, path: str) -> Any:
    """Returns the declared type of the leaf at a dotted path, or None where there is no such leaf."""
    return next((field.type for leaf, field, _ in _leaves(config) if leaf == path), None)


def leaf_meaning(config: Any, path: str) -> str:
    """Returns the one line on what the leaf at a dotted path means, and the values it may take."""
    metadata = next(field.metadata for leaf, field, _ in _leaves(config) if leaf == path)
    choices = f" ({', '.join(metadata['choices'])})" if metadata["choices"] else ""
    return metadata["meaning"] + choices


def type_name(annotation: Any) -> str:
    """Returns a type as a user would say it."""
    if isinstance(annotation, types.UnionType):
        return " or ".join(type_name(kind) for kind in typing.get_args(annotation) if kind is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return f"a tuple of {type_name(typing.get_args(annotation)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
        annotation, annotation.__name__
    )


def _check_type(path: str, annotation: Any, value: Any) -> None:
    if not _is_instance(value, annotation):
        raise UserError(f"{path} takes {type_name(annotation)}, got {value!r}")


def _is_instance(value: Any, annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType):
        return any(_is_instance(value, kind) for kind in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        kind = typing.get_args(annotation)[0]
        return isinstance(value, tuple) and all(_is_instance(item, kind) for item in value)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Returns the tree as plain dicts, lists, text and numbers, fit for JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, ConfigDict):
            return value.to_dict()
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def from_dict(values: Mapping[str, Any], kind: type = TrainConfig) -> Any:
    """Rebuilds a configuration from `to_dict`; leaves that are missing take their defaults.

    Raises:
      UserError: a key that no configuration has.
    """
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if unknown := [key for key in values if key not in fields]:
        raise UserError(f"unknown configuration key {unknown[0]!r}{nearest(unknown[0], fields)}")

    def rebuilt(annotation: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(annotation):
            return from_dict(value, annotation)
        if annotation is ConfigDict:
            return ConfigDict(value)
        return tuple(value) if isinstance(value, list) else value

    return kind(**{key: rebuilt(fields[key], value) for key, value in values.items()})
