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
    """Which images, and what happens to them before the network."""

    name: str = _option("digits", "a TFDS image classification set, as name, name/config or name:version")
    data_dir: str | None = _option(None, "where prepared sets lie; unset takes TFDS's own folder")
    train_split: str = _option("train", "TFDS split to train on, such as train or train[:90%]")
    test_split: str = _option("test", "TFDS split to evaluate on")
    image_size: int | None = _option(None, "height and width fed to the network; unset as stored", minimum=1)
    resize: str = _option(
        "bilinear",
        "how stored images reach image_size; pad centres them on black",
        choices=("bilinear", "bicubic", "nearest", "pad"),
    )
    mean: tuple[float, ...] = _option((0.0,), "subtracted from pixels scaled to 0..1, one or one a channel")
    std: tuple[float, ...] = _option((1.0,), "divides pixels after the mean, one or one a channel")
    flip: bool = _option(False, "mirror training images left to right half the time")
    crop_padding: int = _option(0, "pad training images by so many black pixels and crop at random", minimum=0)


@dataclasses.dataclass
class OptimizerConfig:
    """Stochastic gradient descent with momentum and coupled weight decay."""

    learning_rate: float = _option(0.1, "peak learning rate; the schedule scales it", minimum=0.0)
    momentum: float = _option(0.9, "share of the velocity kept a step", minimum=0.0)
    nesterov: bool = _option(False, "look-ahead momentum")
    weight_decay: float = _option(0.0, "times the parameters, added to the gradient before momentum", minimum=0.0)
    weight_decay_on: str = _option(
        "weights", "weights leaves out biases and normalisation", choices=("weights", "all")
    )
    clip_norm: float | None = _option(None, "longest gradient, by global norm, before weight decay", minimum=0.0)
    ema_decay: float = _option(0.0, "share of the averaged parameters kept a step; 0 keeps no average", minimum=0.0)


@dataclasses.dataclass
class ScheduleConfig:
    """How the learning rate changes, as a factor of optimizer.learning_rate, step by step."""

    name: str = _option(
        "constant", "shape after the warm-up", choices=("constant", "multi_step", "cosine", "polynomial")
    )
    warmup: str = _option("0 epochs", "duration of the linear rise at the start")
    warmup_factor: float = _option(0.0, "factor at the first step of the warm-up", minimum=0.0)
    milestones: tuple[str, ...] = _option((), "multi_step: durations from the start of the run")
    factor: float = _option(0.1, "multi_step: multiplies the rate at each milestone", minimum=0.0)
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
    positive = ("duration", "evaluation.every", "checkpoint.every", "logging.every")
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
    if 0.0 in config.data.std:
        raise UserError("data.std holds a 0, by which pixels cannot be divided")
    if config.schedule.name == "multi_step" and not config.schedule.milestones:
        raise UserError("schedule.name is 'multi_step' but schedule.milestones is empty; write ('30 epochs',)")


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
