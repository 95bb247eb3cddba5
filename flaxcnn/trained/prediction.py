"""Prediction: the class probabilities of the images of a split, in order."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.decoding import messages
from flaxcnn.inference import Predictor
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.state import TrainState

# Number of batches that threads decode, one each, while the devices compute another one.
_DECODED_AHEAD = 4


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
      index: index of the image in its split.
      label: label of the image, or -1 if it has no label.
      probabilities: (classes,) float32, probabilities of the trained classes.
    """

    index: int
    label: int
    probabilities: np.ndarray


def predict(
    experiment: Experiment,
    state: TrainState,
    dataset: ImageDataset,
    *,
    batch_size: int,
    on_bad: Callable[[int, str], None],
) -> Iterator[Prediction]:
    """Yields predictions for the images of a split, in order, with the preprocessing of evaluation.

    Only a few batches are in memory at a time.

    Args:
      experiment: network and preprocessing.
      state: train state with the parameters.
      dataset: split to classify, see `open_data`, `open_other_data` and `open_files`.
      batch_size: number of images per batch over all local devices.
      on_bad: called as `on_bad(index, reason)` for each image that cannot be read; no prediction is yielded for it.
    """
    predictor = Predictor(experiment.model, state.variables, batch_size=batch_size, preprocess=experiment.views)
    for examples, images, labels, bad in _decoded(dataset, predictor.batch_size):
        for index, reason in bad:
            on_bad(index, reason)
        left_out = {index for index, _ in bad}
        found = map(Prediction, examples, labels, predictor.probabilities(images))
        yield from (prediction for prediction in found if prediction.index not in left_out)


def _decoded(
    dataset: ImageDataset, size: int
) -> Iterator[tuple[range, np.ndarray, list[int], list[tuple[int, str]]]]:
    """Yields (indices, images, labels, bad images) for batches of `size` images of a split.

    Images are decoded by threads, not by processes as in training: threads start immediately, and share memory and
    open files.
    """

    def read(examples: range) -> tuple[range, np.ndarray, list[int], list[tuple[int, str]]]:
        images = np.empty((len(examples), *dataset.image_shape), np.uint8)
        return examples, images, *dataset.decode_into(images, 0, examples, dataset.source.items(examples))

    count, threads = len(dataset.source), min(os.cpu_count() or 1, _DECODED_AHEAD)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, size):
            waiting.append(pool.submit(read, range(start, min(start + size, count))))
            if len(waiting) > _DECODED_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    messages.tell(messages.take())
