"""Prepared TFDS image classification sets as arrays: decoded once, uint8, ready for the device."""

import concurrent.futures
import dataclasses
import math

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from flaxcnn.data.digits import Digits
from flaxcnn.data.prepare import is_prepared, open_builder, prepare
from flaxcnn.errors import UserError, first_line, nearest

READ_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A split in memory.

    Attributes:
      name: of the TFDS data set.
      split: of the data set.
      images: (N, H, W, C) uint8, C of 1 (grey) or 3 (RGB).
      labels: (N,) int32, from 0 to `len(class_names) - 1`.
      class_names: in the order of the labels.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def class_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
    """Returns the names of the classes of a TFDS image classification set, in the order of the labels."""
    _, label_key = _supervised_keys(builder)
    return tuple(builder.info.features[label_key].names)


def load(
    name: str, split: str, *, data_dir: str | None = None, image_size: int | None = None, limit_bytes: int
) -> ImageDataset:
    """Reads and decodes a split of a prepared data set; `digits` is prepared if need be.

    Args:
      name: TFDS name, see `prepare.open_builder`.
      split: TFDS split, such as "train" or "test[:1000]".
      data_dir: folder of prepared sets; None for TFDS's own.
      image_size: where the stored images differ in size, each is scaled so that its shorter side has so many
        pixels, and its centre is cut out. Images of one size stay as they are.
      limit_bytes: largest decoded size to accept.

    Raises:
      UserError: unknown, not prepared, no such split, not images with one label each, or too large.
    """
    builder = open_builder(name, data_dir)
    if not is_prepared(builder):
        if not isinstance(builder, Digits):
            folder = f" --data-dir {data_dir}" if data_dir else ""
            raise UserError(
                f"data set {name} is not prepared in {builder.data_dir_root}; "
                f"run: python -m flaxcnn prepare {name}{folder}"
            )
        builder = prepare(name, data_dir)
    image_key, label_key = _supervised_keys(builder)
    num_examples = _num_examples(builder, split)
    shape = builder.info.features[image_key].shape
    _check_fits(builder, split, num_examples, shape, image_size, limit_bytes)

    records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    channels = shape[-1] or 3
    size = (image_size, image_size) if None in shape[:2] else None
    images = np.empty((num_examples, *(size or shape[:2]), channels), np.uint8)
    labels = np.empty(num_examples, np.int32)

    def read(start: int) -> None:
        stop = min(start + READ_AT_ONCE, num_examples)
        for index, record in enumerate(records.__getitems__(list(range(start, stop))), start):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            image = decode_image(feature[image_key].bytes_list.value[0], channels)
            if image is None:
                raise UserError(f"image {index} of split {split!r} of {builder.name} is neither JPEG nor PNG")
            images[index] = image if size is None else resize_and_center_crop(image, size)
            labels[index] = feature[label_key].int64_list.value[0]

    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for done in [pool.submit(read, start) for start in range(0, num_examples, READ_AT_ONCE)]:
                done.result()
    except UserError:
        raise
    except (RuntimeError, OSError, ValueError, KeyError, IndexError) as error:  # whatever a damaged file leads to
        raise UserError(
            f"cannot read split {split!r} of {builder.name} in {builder.data_path}: {first_line(error)}; put its "
            f"files back, or remove the folder and prepare it again"
        ) from error
    names = class_names(builder)
    if not (labels.min() >= 0 and labels.max() < len(names)):
        raise UserError(f"split {split!r} of {builder.name} holds images without a label; take another split")
    return ImageDataset(builder.name, split, images, labels, names)


def decode_image(encoded: bytes, channels: int) -> np.ndarray | None:
    """Decodes a JPEG or PNG to (H, W, channels) uint8, grey for 1 channel and RGB for 3; None if it is neither."""
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag) if encoded else None
    except cv2.error:  # larger than OpenCV is willing to decode
        return None
    if image is None:
        return None
    return image[..., None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize_and_center_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales (H, W, C) until it just covers `size` (height, width), and cuts out its centre; area or bilinear."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    if scale != 1:
        new = (max(size[1], round(width * scale)), max(size[0], round(height * scale)))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, new, interpolation=interpolation).reshape(new[1], new[0], -1)
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def _supervised_keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    keys, features = builder.info.supervised_keys, builder.info.features
    if (
        keys is None
        or len(keys) != 2
        or not isinstance(features[keys[0]], tfds.features.Image)
        or not isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise UserError(f"data set {builder.name} is not made of images with one class label each")
    return keys


def _num_examples(builder: tfds.core.DatasetBuilder, split: str) -> int:
    try:
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        known = list(builder.info.splits)
        hint = nearest(split, known) or f"; it has {', '.join(known)}"
        raise UserError(f"data set {builder.name} has no split {split!r}{hint}") from None


def _check_fits(builder, split, num_examples, shape, image_size, limit_bytes) -> None:
    if num_examples <= 0:
        raise UserError(f"split {split!r} of data set {builder.name} is empty")
    if None in shape[:2] and image_size is None:
        raise UserError(f"the images of {builder.name} differ in size; set data.image_size, such as 64")
    height, width = (image_size, image_size) if None in shape[:2] else shape[:2]
    needed = math.prod((num_examples, height, width, shape[2] or 3))
    if needed > limit_bytes:
        raise UserError(
            f"split {split!r} of {builder.name} takes {needed / 2**30:.1f} GiB decoded, more than the "
            f"{limit_bytes / 2**30:.1f} GiB set aside for data; take a part, such as '{split}[:10%]'"
        )
