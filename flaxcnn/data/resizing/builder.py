"""The TFDS builder that writes a resized dataset."""

import collections
import concurrent.futures
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorflow_datasets.core import dataset_builder

from flaxcnn.cores import available_cores
from flaxcnn.data.decoding import messages
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.resizing import workers as resize_workers
from flaxcnn.data.resizing.image import JPEG_QUALITY, scaled_size
from flaxcnn.data.resizing.origin import Origin
from flaxcnn.data.resizing.workers import ResizedImage
from flaxcnn.data.sources.protocol import Source
from flaxcnn.data.tfds.builders import FILE_FORMAT, folder_of_sets
from flaxcnn.errors import UserError

# Images per task: so many that many records are read at once, and that sending messages takes little time.
CHUNK = 16
# Pixels per shard if all images were square: for a side of 256 that is 4,096 images, or about 0.15 GB. TFDS keeps a
# shard in memory while it is written. (TFDS's GeneratorBasedBuilder keeps a whole split in memory if the order of
# examples must not change, and needs TensorFlow above 1 GB.)
SHARD_PIXELS = 2**28


class ResizedBuilder(dataset_builder.ShardBasedBuilder, skip_registration=True):
    """Builder of one resized dataset.

    Attributes:
      left_out: one line per image that could not be read; complete when the dataset is written.
    """

    def __init__(
        self,
        name: str,
        side: int,
        origin: Origin,
        sources: Mapping[str, Source],
        *,
        data_dir: str | None,
        skip: bool,
        pool: concurrent.futures.Executor,
        progress: Progress,
    ):
        """Creates the builder. Nothing is written yet.

        Args:
          name: name of the resized dataset.
          side: shorter side of the resized images, in pixels.
          origin: the original dataset or folder.
          sources: {name of a split of the original: source}.
          data_dir: folder of prepared TFDS datasets; None for TFDS's default.
          skip: whether images that cannot be read are left out; otherwise the first one raises `UserError`.
          pool: pool of processes that run `resize_workers.resize`, see `resize_workers.open_pool`.
          progress: progress display, to which a bar for each split is added.
        """
        self.name = name
        self.VERSION = tfds.core.Version(origin.version)
        self.left_out: list[str] = []
        self._side, self._origin, self._sources, self._skip = side, origin, sources, skip
        self._pool, self._progress = pool, progress
        self._any_larger = False
        super().__init__(data_dir=str(folder_of_sets(data_dir)), file_format=FILE_FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        height, width, _ = self._origin.image_shape
        shape = (*scaled_size(height, width, self._side), 3) if height and width else (None, None, 3)
        class_names = next(iter(self._sources.values())).class_names
        features = {
            "image": tfds.features.Image(shape=shape, encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=class_names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._origin.description}, pictures scaled to a shorter side of {self._side} pixels",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(made_of=self._origin.description, jpeg_quality=JPEG_QUALITY),
        )

    def _download_and_prepare(self, *arguments: Any, **keywords: Any) -> None:
        super()._download_and_prepare(*arguments, **keywords)
        for name, split in self.info.splits.items():
            if not split.num_examples:
                raise UserError(f"no image of split {name!r} of {self._origin.description} can be read")
        if not self._any_larger:
            raise UserError(
                f"no image of {self._origin.description} has a shorter side above {self._side} pixels: there is "
                f"nothing to resize"
            )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator]]]:
        del dl_manager  # nothing to download
        self._bars = {
            split: self._progress.add_task(split, total=len(self._sources[split])) for split in self._sources
        }
        return {split: self._shards(split) for split in self._sources}

    def _shards(self, split: str) -> list[Callable[[], Iterator]]:
        length = len(self._sources[split])
        count = -(-length // max(SHARD_PIXELS // self._side**2, 1))
        # All shards share one stream of images, so that the pool keeps working while a shard is written.
        resized = self._resized(split)
        edges = [length * shard // count for shard in range(count + 1)]
        return [
            functools.partial(self._examples, split, range(*each), resized) for each in itertools.pairwise(edges)
        ]

    def _examples(self, split: str, indices: range, resized: Iterator) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label, larger) in zip(indices, resized, strict=False):  # the stream continues
            self._progress.advance(self._bars[split])
            if isinstance(image, BadImage):
                what = f"{self._sources[split].describe(index)}: {image}"
                if not self._skip:
                    raise UserError(f"{what}; --bad-images skip leaves out what cannot be read")
                self.left_out.append(what)
                continue
            self._any_larger |= larger
            yield index, {"image": image, "label": label}

    def _resized(self, split: str) -> Iterator[ResizedImage]:
        """Yields the resized images of a split in order. Only a few tasks are submitted ahead of use."""
        source = self._sources[split]
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for start in range(0, len(source), CHUNK):
            items = source.items(range(start, min(start + CHUNK, len(source))))
            waiting.append(self._pool.submit(resize_workers.resize, split, items, self._side))
            if len(waiting) > 2 * available_cores():
                yield from self._answer(waiting.popleft())
        while waiting:
            yield from self._answer(waiting.popleft())

    def _answer(self, future: concurrent.futures.Future) -> list[ResizedImage]:
        found, message = future.result()
        messages.tell(message)
        return found


def progress_bars() -> Progress:
    """Returns progress bars on standard error, which are shown only on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
