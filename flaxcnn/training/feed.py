"""From the splits of a data set to batches on the devices: out of their memory, or from a stream, ahead of use."""

import contextlib
import dataclasses
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxcnn.config import TrainConfig
from flaxcnn.data import datasets
from flaxcnn.data.delivery import Delivery
from flaxcnn.data.sources import Source, open_source
from flaxcnn.data.stream import Request, Stream
from flaxcnn.errors import UserError
from flaxcnn.training import memory
from flaxcnn.training.distributed import together
from flaxcnn.training.parallel import Strategy

Array = jax.Array
Data = dict[str, Array]

# Batches on the devices ahead of use.
AHEAD = 2
# Of each split so many pictures that cannot be read are named; further ones are counted only.
NAMED = 20


def open_delivery(config: TrainConfig, split: str, *, training: bool) -> Delivery:
    """Returns a split of the configured data set, and how its pictures are to become arrays.

    Raises:
      UserError: it is not there, or the configuration does not fit it.
    """
    data = config.data
    source = open_source(data.name, split, data.data_dir)
    height, width, channels = source.image_shape
    if channels not in (1, 3):
        raise UserError(f"the images of {source.name} have {channels} channels; grey (1) and RGB (3) can be read")
    scaled_on_host = height is None or width is None or (training and data.crop != "center")
    if scaled_on_host and data.resize != "bilinear":
        raise UserError(
            f"data.resize is {data.resize!r}, which is for images that are scaled on the device; those of "
            f"{source.name} are scaled as they are decoded, and that is bilinear"
        )
    if training and data.crop != "center":
        return Delivery(
            source,
            (data.image_size, data.image_size, channels),
            crop=data.crop,
            seed=config.seed,
            crop_area=data.crop_area,
            crop_ratio=data.crop_ratio,
            shorter_side=(data.shorter_side[0], data.shorter_side[-1]) if data.shorter_side else (0, 0),
        )
    if height is not None and width is not None:
        return Delivery(source, (height, width, channels))
    size = data.image_size if training else evaluation_size(config)
    if size is None:
        raise UserError(f"the images of {source.name} differ in size; set data.image_size, such as 64")
    return Delivery(source, (size, size, channels), crop="center")


def evaluation_size(config: TrainConfig) -> int | None:
    """Returns the height and width to which a picture is brought before its views are cut; None as stored."""
    evaluation = config.evaluation
    size = evaluation.shorter_side or evaluation.image_size or config.data.image_size
    return max(evaluation.scales, default=size)


def memory_for_data() -> int:
    """Returns the bytes of a device that a split may take: a quarter of its memory, the same in every process."""
    return memory.agreed(memory.device_bytes(jax.local_devices()[0]) // 4)


def is_streamed(config: TrainConfig, delivery: Delivery, limit: int) -> bool:
    """Returns whether a split is decoded anew in each epoch, rather than once into the memory of the devices.

    Args:
      config: of the run.
      delivery: the split.
      limit: see `memory_for_data`.

    Raises:
      UserError: it is to lie in memory and cannot.
    """
    loading, source = config.data.loading, delivery.source
    needed = datasets.decoded_bytes(delivery)
    if loading == "auto":
        return delivery.crop != "stored" or needed > limit
    if loading == "memory" and delivery.crop in ("random", "random_resized"):
        raise UserError(f"data.crop {delivery.crop!r} decodes pictures anew; write data.loading 'stream' or 'auto'")
    if loading == "memory" and needed > limit:
        raise UserError(
            f"split {source.split!r} of {source.name} takes {needed / 2**30:.1f} GiB decoded, more than the "
            f"{limit / 2**30:.1f} GiB set aside for data; write data.loading 'stream', or take a part, such as "
            f"'{source.split}[:10%]'"
        )
    return loading == "stream"


@dataclasses.dataclass(frozen=True)
class Split:
    """A split whose batches can be had.

    Attributes:
      source: of its pictures.
      data: what of it lies whole on every device: image, label and mask; nothing of a stream.
      bad: the reason for each picture that could not be read so far, by its number.
    """

    source: Source
    data: Data
    bad: dict[int, str]
    _given: Callable[[Iterator[Request]], Iterator[Data]]
    _blank: Callable[..., Data]
    _batch_size: int

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, requests: Iterator[Request]) -> "Batches":
        """Returns what `assemble` makes the batches of, in the order of the requests."""
        alone = jax.process_count() == 1
        stand_in = None if alone else functools.partial(self.blank, self._batch_size)
        return Batches(self._given(requests), AHEAD if not self.data else 0, stand_in)

    def count_bad(self) -> int:
        """Returns how many pictures could not be read so far, in all processes, each of which must ask."""
        if self.data or jax.process_count() == 1:  # what lies in memory every process has decoded whole
            return len(self.bad)
        return int(multihost_utils.process_allgather(np.array(len(self.bad), np.int32)).sum())

    def blank(self, *shape: int) -> Data:
        """Returns what stands for a batch of so many examples in this process when a program is compiled.

        A second number, of steps at once, is for what lies in memory alone.
        """
        return self._blank(*shape)


def assemble(data: Data, given: Data) -> Data:
    """Returns the batch: image uint8, label int32, mask float32, visit int32; inside the compiled step.

    Args:
      data: of the split, see `Split.data`.
      given: the batch as it comes from a stream; or mask and visit, whose examples are gathered from the data.
    """
    if not data:
        return given
    examples = given["visit"][:, 1]
    mask = data["mask"][examples] * given["mask"]
    return {
        "image": data["image"][examples],
        "label": data["label"][examples],
        "mask": mask,
        "visit": given["visit"],
    }


@contextlib.contextmanager
def open_splits(
    config: TrainConfig,
    strategy: Strategy,
    deliveries: Mapping[str, Delivery],
    batch_sizes: Mapping[str, int],
    limit: int,
) -> Iterator[dict[str, Split]]:
    """Gets splits ready: decodes those for memory, and starts the processes that decode the others.

    Args:
      config: of the run.
      strategy: whose devices the batches go to.
      deliveries: the splits, by a name for each.
      batch_sizes: of each, over all devices.
      limit: see `memory_for_data`.

    Raises:
      UserError: a picture cannot be read and none may be left out, or a set is damaged.
    """
    streamed = {name: delivery for name, delivery in deliveries.items() if is_streamed(config, delivery, limit)}
    sizes = {name: size // jax.process_count() for name, size in batch_sizes.items()}
    with contextlib.ExitStack() as stack:
        stream = None
        if streamed:
            workers = config.data.workers
            workers = _cores() if workers is None else workers
            own_sizes = {name: sizes[name] for name in streamed}
            stream = stack.enter_context(Stream(streamed, batch_sizes=own_sizes, workers=workers))
        splits = {}
        for name, delivery in deliveries.items():
            bad = _Bad(delivery.source, skip=config.data.bad_images == "skip")
            if name in streamed:

                def given(requests, name=name, bad=bad):
                    return _copied(strategy, stream.batches(name, requests, bad))

                def blank(size, shape=delivery.image_shape):
                    image, label = np.zeros((size, *shape), np.uint8), np.zeros(size, np.int32)
                    return strategy.split({"image": image, "label": label} | _visits(_no_request(size)))

                splits[name] = Split(delivery.source, {}, bad.reasons, given, blank, sizes[name])
            else:
                dataset = datasets.load(delivery, bad)
                arrays = {"image": dataset.images, "label": dataset.labels, "mask": dataset.mask}

                def given(requests):
                    return (strategy.split(_visits(request)) for request in requests)

                def blank(*shape):
                    return strategy.split(_visits(_no_request(*shape)))

                data = strategy.replicate(arrays)
                splits[name] = Split(delivery.source, data, bad.reasons, given, blank, sizes[name])
        yield splits


class Batches:
    """Batches on the devices in their order, to be closed; the next ones are on their way meanwhile.

    Of several processes one that has no batch must not leave the others waiting in the middle of a step: it goes on
    with a blank one, until all of them ask together whether one has failed.

    Attributes:
      idle_seconds: for how long so far the device had nothing to do because a batch was not there.
    """

    def __init__(self, batches: Iterator[Data], ahead: int, stand_in: Callable[[], Data] | None = None):
        """Takes batches from an iterator as they are asked for, or in a thread that is so many ahead of use.

        Args:
          batches: the iterator.
          ahead: how many lie ready; 0 for no thread.
          stand_in: makes a blank batch; None where there is but one process.
        """
        self.idle_seconds = 0.0
        self._batches, self._thread, self._stand_in = batches, None, stand_in
        self._ended: BaseException | None = None  # what ended the batches
        if ahead:
            self._ready: queue.Queue = queue.Queue(ahead)
            self._closed = threading.Event()
            self._thread = threading.Thread(target=self._fetch, daemon=True)
            self._thread.start()

    def next(self, busy: Array | None = None) -> Data:
        """Returns the next batch.

        Args:
          busy: a result of the work that the device was given last; until that is there the device does not wait.

        Raises:
          UserError: see `Stream.batches`; of several processes `check` raises it.
          StopIteration: there is none.
        """
        if self._thread is None:
            return next(self._batches)
        if self._ended is not None:
            return self._instead()
        idle_since = None
        while True:
            if idle_since is None and busy is not None and busy.is_ready():
                idle_since = time.perf_counter()
            try:
                batch = self._ready.get(timeout=0.002 if idle_since is None else None)
                break
            except queue.Empty:
                continue
        if idle_since is not None:
            self.idle_seconds += time.perf_counter() - idle_since
        if isinstance(batch, BaseException):
            self._ended = batch
            return self._instead()
        return batch

    def check(self) -> None:
        """Raises `UserError` in all processes, each of which must ask, if one of them could not get a batch."""
        with together():
            if isinstance(self._ended, UserError):
                raise self._ended

    def close(self) -> None:
        """Stops what is under way."""
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
        self._batches.close()

    def _instead(self) -> Data:
        if isinstance(self._ended, UserError) and self._stand_in is not None:
            return self._stand_in()
        raise self._ended

    def _fetch(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(batch):
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, batch: Any) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(batch, timeout=0.1)
                return True
        return False


class _Bad:
    """Notes pictures that cannot be read, and says so, or ends the run."""

    def __init__(self, source: Source, *, skip: bool):
        self.reasons: dict[int, str] = {}
        self._source, self._skip = source, skip

    def __call__(self, example: int, reason: str) -> None:
        what = f"{self._source.describe(example)}: {reason}"
        if not self._skip:
            raise UserError(f"{what}; --config.data.bad_images=skip (evaluate: --bad-images skip) leaves it out")
        if example in self.reasons:
            return
        self.reasons[example] = reason
        if len(self.reasons) <= NAMED:
            print(f"left out: {what}", file=sys.stderr)
        elif len(self.reasons) == NAMED + 1:
            print(f"left out: more of {self._source.name}, which are counted only", file=sys.stderr)


def _visits(request: Request) -> dict[str, np.ndarray]:
    epochs = np.full_like(request.examples, request.epoch)
    return {"mask": request.mask, "visit": np.stack([epochs, request.examples], axis=-1)}


def _no_request(*shape: int) -> Request:
    return Request(0, np.zeros(shape, np.int32), np.zeros(shape, np.float32))


def _copied(strategy: Strategy, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[Data]:
    """Puts each batch on the devices, and waits until it is there, because its memory is used again."""
    with contextlib.closing(batches):
        for batch in batches:
            if strategy.device.platform == "cpu":  # where JAX would use the memory itself
                batch = jax.tree.map(np.copy, batch)
            yield jax.block_until_ready(strategy.split(batch))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
