"""Prepared TFDS datasets, read from their array_record files without TensorFlow."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxcnn.data.sources.protocol import Encoded, digest
from flaxcnn.data.sources.split_notation import file_instructions
from flaxcnn.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a prepared TFDS dataset; see `Source`.

    Attributes:
      folder: folder of the prepared dataset, including its version.
      records: the records of the split, indexed from 0.
      image_key: key of the image in an example.
      label_key: key of the label in an example.
      unlabelled: whether images without a label (label -1) are allowed; otherwise reading one raises `UserError`.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    folder: str
    records: Any
    image_key: str
    label_key: str
    unlabelled: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def items(self, indices: Sequence[int]) -> list[int]:
        """Returns the indices themselves."""
        return [int(index) for index in indices]

    def read(self, items: Sequence[int]) -> list[Encoded]:
        """Returns (encoded image, label) for each index. Many images at once are read faster than one by one."""
        from google.protobuf.message import DecodeError  # slow to import, as is the next
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            found = []
            for record in self.records.__getitems__(list(items)):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                encoded = feature[self.image_key].bytes_list.value[0]
                found.append((encoded, feature[self.label_key].int64_list.value[0]))
        except (RuntimeError, OSError, ValueError, KeyError, IndexError, DecodeError) as error:  # signs of damage
            raise self._damaged(error) from error
        lowest = -1 if self.unlabelled else 0
        if any(not lowest <= label < len(self.class_names) for _, label in found):
            raise UserError(f"split {self.split!r} of {self.name} holds images without a label; take another split")
        return found

    @property
    def fingerprint(self) -> str:
        """Digest of the name and version of the dataset, the name of the split, and its number of images."""
        return digest(f"{Path(self.folder).parent.name}/{Path(self.folder).name} {self.split} {len(self)}".encode())

    def describe(self, index: int) -> str:
        """Returns a text with index and split, because images of a TFDS dataset have no file names."""
        return f"image {index} of split {self.split!r} of {self.name}"

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"cannot read split {self.split!r} of {self.name} in {self.folder}: {first_line(error)}; put its files "
            f"back, or remove the folder and prepare it again"
        )


def prepared_builder(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a prepared dataset. The dataset `digits` is prepared first if needed.

    Args:
      name: TFDS name, see `flaxcnn.data.tfds.builders.open_builder`.
      data_dir: folder of prepared TFDS datasets; None for TFDS's default.

    Raises:
      UserError: the dataset is not prepared.
    """
    from flaxcnn.data.tfds.builders import folder_hint, is_prepared, open_builder  # slow to import

    builder = open_builder(name, data_dir)
    if not is_prepared(builder):
        if name != "digits":
            folder = f" --data-dir {data_dir}" if data_dir else ""
            raise UserError(
                f"data set {name} is not prepared in {builder.data_dir_root}; "
                f"run: python -m flaxcnn prepare {name}{folder}{folder_hint(name)}"
            )
        from flaxcnn.data.tfds.preparation import prepare

        builder = prepare(name, data_dir)
    return builder


def open_tfds(builder: Any, split: str) -> TfdsSource:
    """Opens a split of a prepared dataset.

    Args:
      builder: TFDS builder of the dataset.
      split: split or part of a split in TFDS's notation, such as "train" or "test[:1000]".

    Raises:
      UserError: the split does not exist, or its files cannot be read.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    from flaxcnn.data.tfds.builders import supervised_keys

    image_key, label_key = supervised_keys(builder)
    height, width, channels = builder.info.features[image_key].shape
    instructions = file_instructions(builder.info.splits, split, split, builder.name)
    folder = str(builder.data_path)
    try:
        records = ArrayRecordDataSource(instructions) if instructions else ()
    except (RuntimeError, OSError, ValueError) as error:
        reason = f"{first_line(error)}; put its files back, or remove the folder and prepare it again"
        raise UserError(f"cannot read split {split!r} of {builder.name} in {folder}: {reason}") from error
    return TfdsSource(
        name=builder.name,
        split=split,
        class_names=tuple(builder.info.features[label_key].names),
        image_shape=(height, width, channels or 3),
        folder=folder,
        records=records,
        image_key=image_key,
        label_key=label_key,
    )
