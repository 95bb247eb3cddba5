"""Sets of smaller pictures, which are decoded in less time: a TFDS set made of another one, or of a folder."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorflow_datasets.core import constants, dataset_builder

from flaxcnn.data import pictures, prepare, remarks
from flaxcnn.data.pictures import BadPicture
from flaxcnn.data.sources import FOLDER, Source, open_splits
from flaxcnn.errors import UserError, first_line
from flaxcnn.paths import local_path

# Of scikit-learn's two photographs at 384x256, quality 85, 95 and 100 take 20, 37 and 76 kB and give 34.5, 37.7 and
# 39.3 dB: beyond 95 the error hardly falls, because chroma has half the resolution, and the size doubles.
JPEG_QUALITY = 95
_JPEG_MAX_SIDE = 65_500  # libjpeg's
# Pictures a task: records are read many at once, and a message costs nothing beside them.
CHUNK = 16
# A shard has so many pixels, were its pictures square: 4,096 pictures, some 0.15 GB, for a side of 256. TFDS keeps
# it in memory while it writes it. (GeneratorBasedBuilder, its writer for a stream of examples, keeps a whole split
# if the order is to stay, and needs TensorFlow beyond 1 GB.)
SHARD_PIXELS = 2**28


class Outcome(NamedTuple):
    """What `prepare_resized` has done.

    Attributes:
      builder: of the resized set.
      existed: whether it was prepared already.
      left_out: the pictures that cannot be read, each with the reason; empty if it existed.
      notes: see `sources.Source`; empty if it existed.
    """

    builder: tfds.core.DatasetBuilder
    existed: bool
    left_out: list[str]
    notes: tuple[str, ...] = ()


def prepare_resized(
    name: str, data_dir: str | None = None, source: Path | None = None, *, side: int, bad_images: str = "stop"
) -> Outcome:
    """Writes a TFDS set NAME_SIDE of the pictures of another set or a folder, unless it is prepared already.

    Splits, order, labels and class names stay. Pictures become upright colour JPEGs whose shorter side is `side`,
    scaled as `crops.test_picture` does, so that evaluating at that side differs by the compression alone; smaller
    ones keep their size.

    Args:
      name: TFDS name, which is prepared first if need be; or "folder:PATH".
      data_dir: folder of prepared sets, for both; None for TFDS's own.
      source: see `prepare.prepare`.
      side: in pixels.
      bad_images: what a picture that cannot be read does: "stop" ends with its name; "skip" leaves it out.

    Raises:
      UserError: see `prepare.prepare` and `sources.open_source`; a picture that cannot be read; none is larger than
        `side`; a set of that name was made of something else. What the attempt wrote is removed again.
    """
    origin = _folder_origin(name, side) if name.startswith(FOLDER) else _tfds_origin(name, side, data_dir)
    resized_name = f"{origin.name}_{side}"
    folder = prepare.folder_of_sets(data_dir) / resized_name
    _refuse_other_origins(folder, origin.description)
    if (folder / origin.version).is_dir():
        builder = prepare.open_builder(f"{resized_name}:{origin.version}", data_dir)
        return Outcome(builder, existed=True, left_out=[])

    if not name.startswith(FOLDER):
        prepare.prepare(name, data_dir, source)
    splits = open_splits(name, None if name.startswith(FOLDER) else data_dir)
    first = next(iter(splits.values()))
    notes = first.notes
    _refuse_odd_class_names(first.class_names)
    with contextlib.ExitStack() as stack:
        resized = _Resized(
            resized_name,
            side,
            origin,
            splits,
            data_dir=data_dir,
            skip=bad_images == "skip",
            pool=stack.enter_context(_pool(splits)),
            progress=stack.enter_context(_progress()),
        )
        stack.enter_context(prepare.removed_on_failure(resized))
        stack.enter_context(_alone_in(folder))
        stack.enter_context(prepare.without_absl_warnings())
        stack.enter_context(prepare.quiet_if(True))
        try:
            resized.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        except UserError:
            raise
        except BrokenProcessPool as error:
            raise UserError(
                "a process that resizes pictures was killed, which the system does when memory runs out"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:  # whatever a full disk leads to
            raise UserError(f"cannot write {resized_name} to {folder}: {first_line(error)}") from error
    builder = prepare.open_builder(f"{resized_name}:{origin.version}", data_dir)
    return Outcome(builder, existed=False, left_out=resized.left_out, notes=notes)


def smaller(encoded: bytes, side: int) -> tuple[bytes, bool]:
    """Scales a picture down to a shorter side, in pixels; returns it as a colour JPEG, and whether it was larger.

    Raises:
      BadPicture: see `pictures.decode`; or longer than a JPEG may be.
    """
    picture = pictures.decode(encoded, 3)
    height, width = _scaled(*picture.shape[:2], side)
    larger = (height, width) != picture.shape[:2]
    if larger:
        image = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        picture = np.asarray(image)
    if max(height, width) > _JPEG_MAX_SIDE:
        raise BadPicture(f"{width}x{height} pixels, and a JPEG has {_JPEG_MAX_SIDE:,} at most on a side")
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes(), larger


def _scaled(height: int, width: int, side: int) -> tuple[int, int]:
    shorter = min(height, width)
    return (height, width) if shorter <= side else (int(side * height / shorter), int(side * width / shorter))


# What is resized


@dataclasses.dataclass(frozen=True)
class _Origin:
    """What a set is made of.

    Attributes:
      description: the same for the same data set or folder.
      name: of the resized set, less its side.
      version: of the resized set.
      image_shape: of the pictures, if they have all one.
    """

    description: str
    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]


def _tfds_origin(name: str, side: int, data_dir: str | None) -> _Origin:
    """Describes a TFDS set. One of another configuration is another set; its version becomes that of the result."""
    builder = prepare.open_builder(name, data_dir)
    image_key, _ = prepare.supervised_keys(builder)
    height, width, _ = shape = builder.info.features[image_key].shape
    if height and width and min(height, width) <= side:
        raise UserError(
            f"the pictures of {name} have {width}x{height} pixels: there is nothing to resize to {side}"
        )
    config = builder.builder_config.name if builder.builder_config else ""
    description = "/".join(filter(None, [builder.name, config]))
    return _Origin(description, _identifier(description), str(builder.version), shape)


def _folder_origin(name: str, side: int) -> _Origin:
    path = os.path.abspath(local_path(name.removeprefix(FOLDER)))  # noqa: PTH100 - keeps links
    identifier = _identifier(Path(path).name)
    if f"{identifier}_{side}" in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"{identifier}_{side} is a data set of TFDS's own; give the folder {path} another name")
    printable = os.fsencode(path).decode(errors="backslashreplace")
    return _Origin(f"{FOLDER}{printable}", identifier, "1.0.0", (None, None, 3))


def _identifier(text: str) -> str:
    """Returns a name that TFDS accepts."""
    found = re.sub(r"[\W_]+", "_", text, flags=re.ASCII).strip("_").lower()
    return found if found[:1].isalpha() else f"pictures_{found}".rstrip("_")


def _refuse_other_origins(folder: Path, description: str) -> None:
    """Raises if any version of a prepared set was made of something else, because the newest is what opens."""
    for info in sorted(folder.glob("*/dataset_info.json")):
        metadata = info.with_name("metadata.json")
        found = json.loads(metadata.read_text()).get("made_of") if metadata.exists() else "something else"
        if found != description:
            raise UserError(
                f"{info.parent} was made of {found}, not of {description}; name another folder with --data-dir"
            )


def _refuse_odd_class_names(class_names: Sequence[str]) -> None:
    """TFDS stores the names as lines and strips them."""
    for name in class_names:
        if name != name.strip():
            raise UserError(f"a data set cannot store the class name {name!r}; rename its folder")


# How it is written


class _Resized(dataset_builder.ShardBasedBuilder, skip_registration=True):
    """The builder of one resized set; afterwards `left_out` lists what cannot be read."""

    def __init__(
        self,
        name: str,
        side: int,
        origin: _Origin,
        sources: Mapping[str, Source],
        *,
        data_dir: str | None,
        skip: bool,
        pool: concurrent.futures.Executor,
        progress: Progress,
    ):
        self.name = name
        self.VERSION = tfds.core.Version(origin.version)
        self.left_out: list[str] = []
        self._side, self._origin, self._sources, self._skip = side, origin, sources, skip
        self._pool, self._progress = pool, progress
        self._any_larger = False
        super().__init__(data_dir=str(prepare.folder_of_sets(data_dir)), file_format=prepare.FILE_FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        height, width, _ = self._origin.image_shape
        shape = (*_scaled(height, width, self._side), 3) if height and width else (None, None, 3)
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
                raise UserError(f"no picture of split {name!r} of {self._origin.description} can be read")
        if not self._any_larger:
            raise UserError(
                f"no picture of {self._origin.description} has a shorter side above {self._side} pixels: there is "
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
        # One stream for all of them, so that the pool has work while a shard is finished.
        resized = self._resized(split)
        edges = [length * shard // count for shard in range(count + 1)]
        return [
            functools.partial(self._examples, split, range(*each), resized) for each in itertools.pairwise(edges)
        ]

    def _examples(self, split: str, indices: range, resized: Iterator) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (picture, label, larger) in zip(indices, resized, strict=False):  # the stream goes on
            self._progress.advance(self._bars[split])
            if isinstance(picture, BadPicture):
                what = f"{self._sources[split].describe(index)}: {picture}"
                if not self._skip:
                    raise UserError(f"{what}; --bad-images skip leaves out what cannot be read")
                self.left_out.append(what)
                continue
            self._any_larger |= larger
            yield index, {"image": picture, "label": label}

    def _resized(self, split: str) -> Iterator[tuple[bytes | BadPicture, int, bool]]:
        """Yields what `_resize` finds, in order; the pool is ahead by a few tasks only."""
        source = self._sources[split]
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for start in range(0, len(source), CHUNK):
            items = source.items(range(start, min(start + CHUNK, len(source))))
            waiting.append(self._pool.submit(_resize, split, items, self._side))
            if len(waiting) > 2 * _cores():
                yield from self._answer(waiting.popleft())
        while waiting:
            yield from self._answer(waiting.popleft())

    def _answer(self, future: concurrent.futures.Future) -> list[tuple[bytes | BadPicture, int, bool]]:
        found, remark = future.result()
        remarks.tell(remark)
        return found


@contextlib.contextmanager
def _alone_in(folder: Path):
    """Keeps other processes from preparing the same set, and removes what one that was killed has left."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing {folder}; wait for it") from None
        except OSError:  # a file system without locks: what lies there may be in use
            pass
        else:
            for remains in folder.glob(f"{constants.INCOMPLETE_PREFIX}*"):
                shutil.rmtree(remains)
        yield
    finally:
        os.close(descriptor)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _pool(sources: Mapping[str, Source]) -> Iterator[concurrent.futures.Executor]:
    """Gives processes that have the sources at hand."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    stop = context.RawValue("b", 0)  # not an Event, whose lock a process that is killed might keep
    pool = concurrent.futures.ProcessPoolExecutor(
        _cores(), context, initializer=_start_worker, initargs=(sources, stop)
    )
    try:
        yield pool
    finally:
        stop.value = 1  # what they have begun is no longer needed
        pool.shutdown(cancel_futures=True)


# In the processes of the pool

_sources: Mapping[str, Source] = {}
_stop: Any = types.SimpleNamespace(value=0)


def _start_worker(sources: Mapping[str, Source], stop: Any) -> None:
    global _sources, _stop
    _sources, _stop = sources, stop
    cv2.setNumThreads(0)  # there is one process a core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that it works for
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends the process with the one that it works for, which may be killed without time to say so."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _resize(
    split: str, items: Sequence[Any], side: int
) -> tuple[list[tuple[bytes | BadPicture, int, bool]], str | None]:
    """Returns (picture, label, whether it was larger) for each item, and what a decoder remarked."""
    found = []
    for encoded, label in _sources[split].read(items):
        if _stop.value:
            break
        try:
            if isinstance(encoded, BadPicture):
                raise encoded
            picture, larger = smaller(encoded, side)
            found.append((picture, label, larger))
        except BadPicture as reason:
            found.append((reason, label, False))
    return found, remarks.take()
