"""The dataclasses of the configuration: type, default, meaning and allowed values of each leaf.

A command-line flag overrides a leaf: `--config.optimizer.learning_rate=0.1`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def _option(
    default: Any,
    meaning: str,
    *,
    choices: tuple = (),
    minimum: float | None = None,
    identity: bool | Callable[[str, Any, Any], bool] = True,
) -> Any:
    """Returns the dataclass field of a leaf, or of a section of leaves.

    Args:
      default: default value, or a function that returns it.
      meaning: one-line description for `--help`.
      choices: allowed values; empty allows all values of the type.
      minimum: smallest allowed value.
      identity: whether the leaf identifies the experiment. A run can continue from a checkpoint only if all such
        leaves are unchanged. It may also be a function `identity(key, before, now) -> bool` of a key within the
        leaf and its two values.
    """
    metadata = {"meaning": meaning, "choices": choices, "minimum": minimum, "identity": identity}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# A leaf that may change when a run continues.
_setting = functools.partial(_option, identity=False)


def _is_other_data(key: str, before: Any, now: Any) -> bool:
    return not (str(before).startswith("folder:") and str(now).startswith("folder:"))


class _Section:
    """A section with leaves of free keys, which recipes may write as dicts."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, ConfigDict(value) if isinstance(value, dict) else value)


@dataclasses.dataclass
class ModelConfig(_Section):
    """The network, the dtype of its computation, and its further fields."""

    name: str = _option("lenet5", "network to train; `python -m flaxcnn list` prints all names")
    num_classes: int | None = _option(None, "number of classes; None takes the dataset's", minimum=1)
    dtype: str = _option(
        "float32",
        "dtype of the computation; parameters stay in float32",
        choices=("float32", "bfloat16", "float16", "float64"),
    )
    options: ConfigDict = _option(
        ConfigDict,
        "further fields of the network, such as --config.model.options.norm=batch_norm",
        identity=lambda key, before, now: key != "remat",  # remat changes no computed value
    )
    frozen: tuple[str, ...] = _option(
        (), "patterns of layers or parameters that stay as they are, such as ('stem', 'stage[12]_*')"
    )
    frozen_batch_stats: bool = _option(
        True, "whether BatchNorm layers in frozen normalize with their running statistics and leave them unchanged"
    )
    unfreeze: str | None = _option(None, "duration after which frozen layers train, too; None keeps them frozen")


@dataclasses.dataclass
class DataConfig:
    """The dataset, and how its images are loaded, cropped, resized and normalized."""

    name: str = _option(
        "digits",
        "TFDS dataset (NAME, NAME/CONFIG or NAME:VERSION), or folder:PATH for your own images",
        # The fingerprint of the files tells whether two folders hold the same images.
        identity=_is_other_data,
    )
    data_dir: str | None = _setting(None, "folder with prepared TFDS datasets; None takes TFDS's default")
    train_split: str = _option("train", "split to train on, such as train or train[:90%]")
    test_split: str = _setting("test", "split to evaluate on")
    loading: str = _setting(
        "auto",
        "memory decodes the dataset once and keeps it on the device; stream decodes each image when its batch "
        "comes; auto takes memory if the dataset fits",
        choices=("auto", "memory", "stream"),
    )
    workers: int | None = _setting(None, "processes that decode a stream; None starts one per core", minimum=0)
    bad_images: str = _setting(
        "stop",
        "what to do about an image that cannot be read: stop the run, or skip and count it",
        choices=("stop", "skip"),
    )
    image_size: int | None = _option(
        None, "height and width of the network's input in pixels; None keeps the stored size", minimum=1
    )
    resize: str = _option(
        "bilinear",
        "how the device resizes decoded images to image_size; pad centers them on black",
        choices=("bilinear", "bicubic", "nearest", "pad"),
    )
    crop: str = _option(
        "center", "crop of each training image in a stream", choices=("center", "random", "random_resized")
    )
    crop_area: tuple[float, ...] = _option(
        (0.08, 1.0), "random_resized: smallest and largest fraction of the image's area"
    )
    crop_ratio: tuple[float, ...] = _option(
        (3 / 4, 4 / 3), "random_resized: smallest and largest ratio of width to height"
    )
    shorter_side: tuple[int, ...] = _option(
        (), "random: pixels to scale the shorter side to before the crop, or a range such as (256, 480)"
    )
    mean: tuple[float, ...] = _option(
        (0.0,), "mean to subtract from pixels scaled to 0..1; one value, or one per channel"
    )
    std: tuple[float, ...] = _option(
        (1.0,), "standard deviation to divide by afterwards; one value, or one per channel"
    )


@dataclasses.dataclass
class AugmentConfig:
    """Augmentation of training images on the device, applied in the order of these fields."""

    crop_padding: int = _option(0, "pixels to pad on each side before a random crop of the same size", minimum=0)
    crop_fill: str = _option("black", "what crop_padding pads with", choices=("black", "reflect"))
    translation: float = _option(
        0.0, "largest random shift as a fraction of the image size; black fills the rest", minimum=0.0
    )
    flip: str = _option(
        "none",
        "horizontal flip: random flips with probability 0.5, alternating flips each image every other epoch",
        choices=("none", "random", "alternating"),
    )
    policy: str = _option(
        "none",
        "policy of random color and geometric operations",
        choices=("none", "rand_augment", "trivial_augment_wide"),
    )
    policy_operations: int = _option(2, "rand_augment: number of operations per image", minimum=1)
    policy_magnitude: int = _option(9, "rand_augment: magnitude of the operations, 0 to 30", minimum=0)
    color_jitter: tuple[float, ...] = _option(
        (), "strengths of brightness, contrast, saturation and hue jitter, such as (0.4, 0.4, 0.4, 0.1)"
    )
    lighting: float = _option(
        0.0, "standard deviation of AlexNet's noise along the principal components of color", minimum=0.0
    )
    erasing: float = _option(0.0, "probability of erasing a random rectangle", minimum=0.0)
    mixup: float = _option(0.0, "alpha of mixup; 0 switches it off", minimum=0.0)
    cutmix: float = _option(
        0.0, "alpha of cutmix; 0 switches it off; with mixup, each batch takes one of the two", minimum=0.0
    )


@dataclasses.dataclass
class OptimizerConfig(_Section):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient before momentum."""

    learning_rate: float = _setting(0.1, "peak learning rate, which the schedule scales", minimum=0.0)
    momentum: float = _option(0.9, "momentum", minimum=0.0)
    nesterov: bool = _option(False, "Nesterov momentum")
    weight_decay: float = _option(0.0, "L2 penalty on kernels, added to the gradient before momentum", minimum=0.0)
    bias_weight_decay: float = _option(0.0, "the same for biases", minimum=0.0)
    norm_weight_decay: float = _option(0.0, "the same for the scales and biases of normalization", minimum=0.0)
    multipliers: ConfigDict = _option(
        ConfigDict,
        "factors of the learning rate by patterns of layers, such as --config.optimizer.multipliers.head=10",
    )
    layer_decay: float | None = _option(
        None, "factor of the learning rate from each layer to the one before it, such as 0.75", minimum=0.0
    )
    clip_norm: float | None = _option(
        None, "largest global norm of the gradient, clipped before weight decay; None never clips", minimum=0.0
    )
    ema_decay: float = _option(
        0.0, "decay of the exponential moving average of the parameters; 0 keeps none", minimum=0.0
    )


@dataclasses.dataclass
class ScheduleConfig:
    """Schedule of the learning rate: a factor over time that multiplies `optimizer.learning_rate`."""

    name: str = _setting(
        "constant",
        "shape of the schedule after the warm-up",
        choices=("constant", "step", "multi_step", "cosine", "polynomial", "plateau"),
        # Plateau keeps a state of its own in the checkpoint.
        identity=lambda key, before, now: "plateau" in (before, now),
    )
    warmup: str = _setting("0 epochs", "duration of the linear warm-up")
    warmup_factor: float = _setting(0.0, "factor at the first step of the warm-up", minimum=0.0)
    every: str = _setting("30 epochs", "step: duration between two drops, counted from the start of the run")
    milestones: tuple[str, ...] = _setting((), "multi_step: durations from the start of the run to each drop")
    patience: int = _setting(10, "plateau: evaluations without a better accuracy before the rate drops", minimum=1)
    factor: float = _setting(0.1, "step, multi_step, plateau: factor of each drop", minimum=0.0)
    final_factor: float = _setting(0.0, "cosine, polynomial: factor at the end of the run", minimum=0.0)
    power: float = _setting(1.0, "polynomial: exponent", minimum=0.0)


@dataclasses.dataclass
class ParallelConfig:
    """Data parallelism over devices, and gradient accumulation on each device."""

    strategy: str = _setting(
        "auto",
        "how devices share a step; auto is jit on one device and shard_map on several",
        choices=("auto", "jit", "shard_map", "pmap"),
    )
    batch_norm: str = _setting(
        "synchronized",
        "BatchNorm statistics over the global batch (synchronized) or per device (local)",
        choices=("synchronized", "local"),
    )
    micro_batches: int | None = _setting(
        1, "gradient accumulation steps per device; None finds the smallest number that fits in memory", minimum=1
    )


@dataclasses.dataclass
class EvaluationConfig:
    """When and how the test split is evaluated. The end of a run is always evaluated."""

    every: str = _setting("1 epochs", "duration between two evaluations")
    batch_size: int = _setting(512, "images per batch over all devices; does not change the result", minimum=1)
    image_size: int | None = _setting(
        None, "height and width of the network's input in pixels; None takes data.image_size", minimum=1
    )
    shorter_side: int | None = _setting(
        None, "pixels to scale the shorter side to before cropping; None takes the input size", minimum=1
    )
    views: str = _setting(
        "center",
        "test-time augmentation, averaging the softmax: center (none), flip (and its mirror image), ten_crop "
        "(corners and center, each mirrored)",
        choices=("center", "flip", "ten_crop"),
    )
    scales: tuple[int, ...] = _setting(
        (), "sizes to classify the whole image at, averaging the softmax, such as (224, 256, 288)"
    )


@dataclasses.dataclass
class CheckpointConfig:
    """When checkpoints are saved. A checkpoint is always saved at the end of a run."""

    every: str = _setting("1 epochs", "duration between two checkpoints")
    keep: int = _setting(2, "number of newest checkpoints to keep; the best is always kept", minimum=1)


@dataclasses.dataclass
class LoggingConfig:
    """When metrics are recorded, and which steps are profiled."""

    every: str = _setting("100 steps", "duration between two records; each epoch also ends with one")
    profile: tuple[int, ...] = _setting((), "first and last step of a profiler trace, such as (10, 20)")


@dataclasses.dataclass
class TrainConfig:
    """Configuration of one training run."""

    seed: int = _option(0, "seed of the initial parameters, data order, augmentation and dropout", minimum=0)
    batch_size: int = _option(128, "images per step over all devices", minimum=1)
    duration: str = _setting("10 epochs", "length of the run")
    label_smoothing: float = _option(
        0.0, "fraction of each target that is spread evenly over all classes", minimum=0.0
    )
    model: ModelConfig = _option(ModelConfig, "which network")
    data: DataConfig = _option(DataConfig, "which images")
    augment: AugmentConfig = _option(AugmentConfig, "augmentation of training images")
    optimizer: OptimizerConfig = _option(OptimizerConfig, "how parameters are updated")
    schedule: ScheduleConfig = _option(ScheduleConfig, "how the learning rate changes")
    parallel: ParallelConfig = _option(ParallelConfig, "how a step is spread over devices")
    evaluation: EvaluationConfig = _option(EvaluationConfig, "when and how the test split is evaluated")
    checkpoint: CheckpointConfig = _option(CheckpointConfig, "when checkpoints are saved")
    logging: LoggingConfig = _option(LoggingConfig, "what is recorded")
