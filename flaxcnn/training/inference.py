"""What was trained, put to use: evaluating a split, classifying images, exporting a program."""

import collections
import concurrent.futures
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from flaxcnn.data import remarks, sources
from flaxcnn.data.delivery import Delivery
from flaxcnn.data.relabelling import relabel
from flaxcnn.data.sources import FOLDER, Source
from flaxcnn.errors import UserError
from flaxcnn.inference import Predictor, describe_preprocessing, export
from flaxcnn.paths import local_path
from flaxcnn.training.checkpoint import Checkpoints
from flaxcnn.training.compilation import keep_compiled_programs
from flaxcnn.training.distributed import is_primary
from flaxcnn.training.evaluation import Evaluation, evaluation_batch_size, make_evaluator
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.feed import memory_for_data, open_delivery, open_splits
from flaxcnn.training.parallel import Strategy
from flaxcnn.training.state import TrainState
from flaxcnn.training.workdir import has_checkpoints, open_experiment, read_run

# Batches that are decoded while one is computed, each by a thread.
_DECODED_AHEAD = 4
_TEST_SPLITS = ("test", "testing", "val", "valid", "validation")


def load_trained(
    workdir: str | Path, checkpoint: str = "latest", *, averaged: bool = False
) -> tuple[Experiment, TrainState]:
    """Returns the experiment and the state that a work directory holds, on one device.

    Args:
      workdir: folder of a run.
      checkpoint: "latest", "best" (highest test accuracy), or a step.
      averaged: whether the averaged parameters take the place of the live ones.

    Raises:
      UserError: no run, no such checkpoint, or no averages in it.
    """
    keep_compiled_programs()
    workdir = local_path(workdir)
    experiment = open_experiment(workdir)
    if averaged and not experiment.config.optimizer.ema_decay:
        raise UserError(f"{workdir} holds no averaged parameters; train with --config.optimizer.ema_decay=0.999")
    if not has_checkpoints(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet; train with --workdir={workdir}")
    with Checkpoints(workdir) as checkpoints:
        named = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
        step = int(checkpoint) if checkpoint.isdecimal() else named.get(checkpoint)
        if step not in checkpoints.steps:
            steps = ", ".join(map(str, checkpoints.steps))
            raise UserError(f"{workdir} has no checkpoint {checkpoint!r}; write latest, best or one of {steps}")
        # Only shapes are needed of what will be restored, so nothing is initialised.
        like = jax.eval_shape(lambda: experiment.create_carry(experiment.optimizer()))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = checkpoints.restore(step, jax.tree.map(lambda leaf: leaf.update(sharding=sharding), like)).state
        return experiment, state.averaged() if averaged else state


def open_data(experiment: Experiment, split: str | None = None) -> Delivery:
    """Returns a split of the data set that a network was trained on; None for the test split.

    Raises:
      UserError: the data set is not there, or has changed.
    """
    config = experiment.config
    name = config.data.name
    if name.startswith(FOLDER) and not local_path(name.removeprefix(FOLDER)).is_dir():
        raise UserError(f"the data of the run is no longer in {name}; --data folder:PATH names where it lies now")
    delivery = open_delivery(config, split or config.data.test_split, training=False)
    source = delivery.source
    _print_notes(source)
    if source.class_names != experiment.class_names or delivery.image_shape != experiment.image_shape:
        raise UserError(
            f"data set {source.name} has other classes or sizes than the one that was trained on; --data {name} "
            f"evaluates it as another data set"
        )
    return delivery


def _print_notes(source: Source) -> None:
    """Says what was found in a folder, and what was left out."""
    for note in source.notes if is_primary() else ():
        print(note, file=sys.stderr)


def open_other_data(experiment: Experiment, name: str, split: str | None = None, *, workdir: Path) -> Delivery:
    """Returns a split of another data set, its labels those of the classes of the same names that were trained.

    Its images are brought to the shape of those that were trained on, as `open_files` does.

    Without a split it is the run's test split, if the data is the run's in another place; all of a folder that has
    no splits; the split of the name that the run's test split has, or else one that is usual for it.

    Args:
      experiment: whose network is evaluated; its configuration says where prepared sets lie.
      name: see `flaxcnn.data.sources.open_source`.
      split: of it.
      workdir: of the run.

    Raises:
      UserError: it is not there, has no such split, or has a class that was not trained.
    """
    data_dir = None if name.startswith(FOLDER) else experiment.config.data.data_dir
    source = _open_split(experiment, name, split, data_dir, workdir)
    _print_notes(source)
    return _in_shape(experiment, relabel(source, experiment.class_names))


def open_files(experiment: Experiment, paths: Sequence[str | Path]) -> Delivery:
    """Returns image files, and all images in folders, in the shape of the data set that was trained on.

    Each is turned to grey or RGB and upright, its shorter side is scaled to the longer side of that shape, and its
    centre is cut out.

    Raises:
      UserError: there is no such file, or a folder holds no images.
    """
    return _in_shape(experiment, sources.open_files(paths))


def _in_shape(experiment: Experiment, source: Source) -> Delivery:
    stored = source.image_shape == experiment.image_shape
    return Delivery(source, experiment.image_shape, crop="stored" if stored else "center")


def _open_split(
    experiment: Experiment, name: str, split: str | None, data_dir: str | None, workdir: Path
) -> Source:
    data = experiment.config.data
    if split is not None:
        return sources.open_source(name, split, data_dir)
    splits = sources.open_splits(name, data_dir)
    if name.startswith(FOLDER) and sources.is_flat(name):
        trained_on = read_run(workdir)["data"].get("fingerprint")
        is_the_runs = _fingerprint(name, data.train_split) == trained_on
        return sources.open_source(name, data.test_split if is_the_runs else "all")
    bases = [part.strip().partition("[")[0] for part in data.test_split.split("+")]
    if all(base in splits or base == "all" for base in bases):
        return sources.open_source(name, data.test_split, data_dir)
    usual = [each for each in _TEST_SPLITS if each in splits] or (list(splits) if len(splits) == 1 else [])
    if not usual:
        raise UserError(f"name a split of {name} with --split; it has {', '.join(splits)}")
    return sources.open_source(name, usual[0], data_dir)


def _fingerprint(name: str, split: str) -> str | None:
    try:
        return sources.open_source(name, split).fingerprint
    except UserError:  # it has no such split
        return None


def evaluate(experiment: Experiment, state: TrainState, delivery: Delivery | None = None) -> Evaluation:
    """Evaluates a state on a split, exactly, on all devices; None for the run's test split.

    Raises:
      UserError: an image cannot be read and none may be left out, or the data set is damaged.
    """
    config, delivery = experiment.config, delivery or open_data(experiment)
    strategy = Strategy()
    state = jax.device_put(state, strategy.replicated)
    batch_size = evaluation_batch_size(config, len(delivery.source), strategy)
    with open_splits(config, strategy, {"test": delivery}, {"test": batch_size}, memory_for_data()) as splits:
        return make_evaluator(experiment, strategy)(state, splits["test"])


class Prediction(NamedTuple):
    """What the network says of an image.

    Attributes:
      index: of the image in its split.
      label: of the image, -1 where it has none.
      probabilities: (classes,) float32.
    """

    index: int
    label: int
    probabilities: np.ndarray


def predict(
    experiment: Experiment,
    state: TrainState,
    delivery: Delivery,
    *,
    batch_size: int,
    on_bad: Callable[[int, str], None],
) -> Iterator[Prediction]:
    """Yields what the network says of each image of a split, in order, as evaluation sees them.

    No more than a few batches are in memory at a time.

    Args:
      experiment: whose network it is.
      state: with the parameters.
      delivery: see `open_data`, `open_other_data` and `open_files`.
      batch_size: images at a time, over all local devices.
      on_bad: told the index of each image that cannot be read, and why; these are left out.
    """
    predictor = Predictor(experiment.model, state.variables, batch_size=batch_size, views=experiment.views)
    for examples, images, labels, bad in _decoded(delivery, predictor.batch_size):
        for index, reason in bad:
            on_bad(index, reason)
        left_out = {index for index, _ in bad}
        found = map(Prediction, examples, labels, predictor.probabilities(images))
        yield from (prediction for prediction in found if prediction.index not in left_out)


def _decoded(delivery: Delivery, size: int) -> Iterator[tuple[range, np.ndarray, list[int], list[tuple[int, str]]]]:
    """Yields (indices, images, labels, those that cannot be read) of a split, so many images at a time.

    In threads, not in processes as in training: they start at once, and share their memory and what is open.
    """

    def read(examples: range) -> tuple[range, np.ndarray, list[int], list[tuple[int, str]]]:
        images = np.empty((len(examples), *delivery.image_shape), np.uint8)
        return examples, images, *delivery.fill(images, 0, examples, delivery.source.items(examples))

    count, threads = len(delivery.source), min(os.cpu_count() or 1, _DECODED_AHEAD)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, size):
            waiting.append(pool.submit(read, range(start, min(start + size, count))))
            if len(waiting) > _DECODED_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    remarks.tell(remarks.take())


def export_trained(experiment: Experiment, state: TrainState, path: str | Path) -> None:
    """Writes a program from images (N, H, W, C), uint8 in the data set's shape, to probabilities (N, classes).

    The names of the classes, and how an image file becomes such an image, come into a file beside it. See
    `flaxcnn.export`.

    Raises:
      UserError: as there.
    """
    export(
        path,
        experiment.model,
        state.variables,
        experiment.image_shape,
        views=experiment.views,
        probabilities=True,
        class_names=experiment.class_names,
        preprocessing=describe_preprocessing(experiment.image_shape),
    )
