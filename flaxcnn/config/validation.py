"""Checks of a configuration, made before any data is opened."""

import types
import typing
from typing import Any

from flaxcnn.config.durations import parse_duration
from flaxcnn.config.geometry import EvaluationGeometry
from flaxcnn.config.leaves import get_leaf, leaves, type_name
from flaxcnn.config.schema import TrainConfig
from flaxcnn.errors import UserError, nearest


def validate(config: TrainConfig) -> None:
    """Checks the values of a configuration.

    Raises:
      UserError: a leaf is invalid. The message names the first such leaf, and says what to write instead.
    """
    for path, field, value in leaves(config):
        _check_type(path, field.type, value)
        if value is None:
            continue
        choices, minimum = field.metadata["choices"], field.metadata["minimum"]
        if choices and value not in choices:
            raise UserError(f"{path} is {value!r}{nearest(value, choices)}; write one of {', '.join(choices)}")
        if minimum is not None and not value >= minimum:
            raise UserError(f"{path} is {value}; it must be {minimum} or more")
    _check_durations(config)
    _check_training(config)
    _check_input(config)
    _check_augmentation(config)
    _check_evaluation(config)


def _check_durations(config: TrainConfig) -> None:
    positive = ("schedule.every", "duration", "evaluation.every", "checkpoint.every", "logging.every")
    milestones = [f"schedule.milestones[{index}]" for index in range(len(config.schedule.milestones))]
    if config.model.unfreeze is not None:
        positive += ("model.unfreeze",)
    for path in (*positive, "schedule.warmup", *milestones):
        try:
            amount, _ = parse_duration(get_leaf(config, path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if path in positive and not amount:
            raise UserError(f"{path} is {get_leaf(config, path)!r}; it must be longer than nothing")


def _check_training(config: TrainConfig) -> None:
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"label_smoothing is {config.label_smoothing}; it must be 0 or more and below 1")
    if config.seed >= 2**63:
        raise UserError(f"seed is {config.seed}; it must be below 2**63")
    for path in ("optimizer.momentum", "optimizer.ema_decay"):
        if not get_leaf(config, path) < 1:
            raise UserError(f"{path} is {get_leaf(config, path)}; it must be below 1")
    if config.model.unfreeze is not None and not config.model.frozen:
        raise UserError("model.unfreeze is set, but model.frozen is empty; name the layers to freeze at first")
    for pattern, factor in config.optimizer.multipliers.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 0:
            raise UserError(f"optimizer.multipliers.{pattern} is {factor!r}; a factor is a number of 0 or more")
    profile = config.logging.profile
    if profile and not (len(profile) == 2 and 1 <= profile[0] <= profile[1]):
        raise UserError(f"logging.profile is {profile}; write the first and the last step, such as (10, 20), or ()")
    if config.schedule.name == "multi_step" and not config.schedule.milestones:
        raise UserError("schedule.name is 'multi_step' but schedule.milestones is empty; write ('30 epochs',)")
    if config.schedule.name == "plateau" and not 0 < config.schedule.factor < 1:
        raise UserError(f"schedule.factor is {config.schedule.factor}; for 'plateau' it lies between 0 and 1")


def _check_input(config: TrainConfig) -> None:
    data = config.data
    if data.crop != "center" and data.image_size is None:
        raise UserError(f"data.crop is {data.crop!r}, which needs a size; set data.image_size, such as 224")
    for path in ("data.crop_area", "data.crop_ratio"):
        low_high = get_leaf(config, path)
        if not (len(low_high) == 2 and 0 < low_high[0] <= low_high[1]) or (
            path.endswith("area") and low_high[1] > 1
        ):
            raise UserError(f"{path} is {low_high}; write the smallest and the largest, such as (0.5, 1.0)")
    side, size = data.shorter_side, data.image_size
    if data.crop == "random" and size and not (len(side) in (1, 2) and side[0] <= side[-1] and side[0] >= size):
        raise UserError(
            f"data.shorter_side is {side}; data.crop 'random' takes ({size},) or a range such as "
            f"({size}, {size * 2}), of {size} or more"
        )
    if side and data.crop != "random":
        raise UserError(
            "data.shorter_side is for data.crop 'random'; evaluation has its own, evaluation.shorter_side"
        )
    if 0.0 in data.std:
        raise UserError("data.std holds a 0, by which pixels cannot be divided")


def _check_augmentation(config: TrainConfig) -> None:
    augment = config.augment
    if augment.crop_padding and augment.translation:
        raise UserError("augment.crop_padding and augment.translation both move the image; choose one")
    if not augment.translation <= 1:
        raise UserError(f"augment.translation is {augment.translation}; it is a fraction of the size, at most 1")
    if not augment.erasing <= 1:
        raise UserError(f"augment.erasing is {augment.erasing}; it is a probability, at most 1")
    if augment.policy_magnitude > 30:
        raise UserError(f"augment.policy_magnitude is {augment.policy_magnitude}; it must be 30 or less")
    jitter = augment.color_jitter
    if jitter and not (len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5):
        raise UserError(
            f"augment.color_jitter is {jitter}; write four strengths, (0.4, 0.4, 0.4, 0.1), the hue's at most 0.5"
        )


def _check_evaluation(config: TrainConfig) -> None:
    evaluation, geometry = config.evaluation, EvaluationGeometry.of(config.data, config.evaluation)
    size = geometry.crop_size
    if evaluation.scales and evaluation.views == "ten_crop":
        raise UserError("evaluation.scales shows whole images and 'ten_crop' parts of them; choose one")
    if evaluation.scales and (evaluation.image_size or evaluation.shorter_side):
        raise UserError("evaluation.scales takes the place of evaluation.image_size and evaluation.shorter_side")
    if any(scale < 1 for scale in evaluation.scales):
        raise UserError(f"evaluation.scales is {evaluation.scales}; sizes are 1 or more")
    if evaluation.views == "ten_crop" and size is not None and (evaluation.shorter_side or 0) <= size:
        raise UserError(
            f"evaluation.views is 'ten_crop' of {size} pixels, which differ only in a larger image; set "
            f"evaluation.shorter_side, such as {size * 8 // 7}"
        )
    if evaluation.shorter_side is not None and (size is None or evaluation.shorter_side < size):
        raise UserError(
            f"evaluation.shorter_side is {evaluation.shorter_side}; write {size}, the size of the crop, or more"
            if size
            else "evaluation.shorter_side needs a crop size; set data.image_size"
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
