"""The configuration: durations, validation, and the way to JSON and back."""

import json
import math

import pytest

from flaxcnn import UserError
from flaxcnn.config import (
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    from_dict,
    to_dict,
    to_steps,
    validate,
)
from flaxcnn.config.leaves import leaf_meaning, leaf_paths

DURATIONS = {
    "10 epochs": 440,
    "1 epoch": 44,
    "0.5 epochs": 22,
    "0.25 epochs": 11,
    "0.01 epochs": 1,
    "7 steps": 7,
    "1 step": 1,
}


@pytest.mark.parametrize(("duration", "steps"), DURATIONS.items())
def test_durations_become_steps(duration, steps):
    assert to_steps(duration, 44) == steps


def test_fractions_of_an_epoch_that_are_whole_steps_stay_so():
    assert [to_steps(f"{tenths / 10} epochs", 30) for tenths in range(1, 8)] == [3, 6, 9, 12, 15, 18, 21]


@pytest.mark.parametrize(
    "duration", ["10", "epochs", "ten epochs", "-1 epochs", "1.5 steps", "3 weeks", "", "inf steps", "nan epochs"]
)
def test_what_is_no_duration_is_refused(duration):
    with pytest.raises(UserError, match="is not a"):
        to_steps(duration, 44)


def broken(path, value):
    config = TrainConfig()
    section, _, leaf = path.rpartition(".")
    setattr(getattr(config, section) if section else config, leaf, value)
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0; it must be 1 or more"),
        ("batch_size", -4, "batch_size is -4; it must be 1 or more"),
        ("batch_size", "64", "batch_size takes a whole number, got '64'"),
        ("batch_size", 6.5, "batch_size takes a whole number, got 6.5"),
        ("batch_size", True, "batch_size takes a whole number, got True"),
        ("seed", -1, "seed is -1; it must be 0 or more"),
        ("model.dtype", "float31", "did you mean float32.* write one of float32, bfloat16"),
        ("model.num_classes", "ten", "model.num_classes takes a whole number, got 'ten'"),
        ("optimizer.learning_rate", math.nan, "optimizer.learning_rate is nan; it must be 0.0 or more"),
        ("optimizer.learning_rate", None, "optimizer.learning_rate takes a number, got None"),
        ("optimizer.momentum", 1.0, "optimizer.momentum is 1.0; it must be below 1"),
        ("optimizer", 3, "optimizer takes a OptimizerConfig, got 3"),
        ("label_smoothing", 1.0, "label_smoothing is 1.0; it must be 0 or more and below 1"),
        ("data.mean", 0.5, "data.mean takes a tuple of a number, got 0.5"),
        ("data.std", (0.5, 0.0), "data.std holds a 0"),
        ("duration", "0 steps", "duration is '0 steps'; it must be longer than nothing"),
        ("schedule.milestones", ("x",), r"schedule.milestones\[0\]: 'x' is not a duration"),
        ("schedule.name", "multi_step", "schedule.milestones is empty"),
        ("schedule.name", "cosinus", "did you mean cosine"),
    ],
)
def test_mistakes_are_one_line_that_names_the_leaf(path, value, message):
    with pytest.raises(UserError, match=message) as raised:
        validate(broken(path, value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"data.crop": "random_resized", "data.image_size": None}, "set data.image_size, such as 224"),
        ({"data.crop_area": (0.5, 1.5)}, r"data.crop_area is \(0.5, 1.5\); write the smallest and the largest"),
        ({"data.crop_ratio": (2.0, 1.0)}, r"data.crop_ratio is \(2.0, 1.0\)"),
        ({"data.shorter_side": (256,)}, "shorter_side is for data.crop 'random'; evaluation has its own"),
        ({"augment.crop_padding": 1, "augment.translation": 0.1}, "both move the image; choose one"),
        ({"augment.translation": 1.5}, "a fraction of the size, at most 1"),
        ({"augment.erasing": 1.5}, "a probability, at most 1"),
        ({"augment.policy_magnitude": 31}, "policy_magnitude is 31; it must be 30 or less"),
        ({"augment.color_jitter": (0.4, 0.4)}, "write four strengths"),
        ({"augment.color_jitter": (0.4, 0.4, 0.4, 0.6)}, "the hue's at most 0.5"),
        (
            {"evaluation.scales": (224,), "evaluation.views": "ten_crop", "evaluation.shorter_side": 256},
            "choose one",
        ),
        ({"evaluation.scales": (224,), "evaluation.image_size": 224}, "takes the place of evaluation.image_size"),
        ({"evaluation.scales": (0,)}, "sizes are 1 or more"),
        ({"evaluation.views": "ten_crop", "evaluation.shorter_side": 28}, "ten_crop' of 28 pixels.*such as 32"),
        ({"evaluation.shorter_side": 20}, "evaluation.shorter_side is 20; write 28, the size of the crop, or more"),
        ({"evaluation.shorter_side": 20, "data.image_size": None}, "needs a crop size; set data.image_size"),
        ({"schedule.name": "plateau", "schedule.factor": 1.0}, "for 'plateau' it lies between 0 and 1"),
    ],
)
def test_input_that_cannot_work_is_one_line(leaves, message):
    config = TrainConfig(data=DataConfig(image_size=28))
    for path, value in leaves.items():
        section, leaf = path.split(".")
        setattr(getattr(config, section), leaf, value)
    with pytest.raises(UserError, match=message) as raised:
        validate(config)
    assert "\n" not in str(raised.value)


def test_defaults_are_valid_and_every_leaf_has_a_meaning():
    config = TrainConfig()
    validate(config)
    assert all(leaf_meaning(config, path) for path in leaf_paths(config))
    assert "optimizer.learning_rate" in leaf_paths(config) and "seed" in leaf_paths(config)


def test_a_configuration_survives_json():
    config = TrainConfig(seed=3, data=DataConfig(mean=(0.1, 0.2, 0.3)), optimizer=OptimizerConfig(clip_norm=2.0))
    config.model.options.norm = "batch_norm"
    config.schedule.milestones = ("1 epochs", "7 steps")
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    validate(again)


def test_an_unknown_key_in_json_is_refused():
    with pytest.raises(UserError, match="unknown configuration key 'learning_rat'; did you mean learning_rate"):
        from_dict({"optimizer": {"learning_rat": 1}})
