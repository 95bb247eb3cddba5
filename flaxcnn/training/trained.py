"""Use of a finished run: evaluating a split, classifying images, exporting a program."""

import collections
import concurrent.futures
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from flaxcnn.config import from_dict
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.decoding import messages
from flaxcnn.data.loading.loader import open_loaders
from flaxcnn.data.sources import folder, opening
from flaxcnn.data.sources.folder import FOLDER
from flaxcnn.data.sources.protocol import Source
from flaxcnn.data.sources.relabelling import relabel
from flaxcnn.errors import UserError
from flaxcnn.inference import Predictor, describe_preprocessing, export
from flaxcnn.parallel.compilation import keep_compiled_programs
from flaxcnn.parallel.memory import memory_for_data
from flaxcnn.parallel.processes import is_primary
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.paths import local_path
from flaxcnn.runs.checkpoint import Checkpoints
from flaxcnn.runs.workdir import has_checkpoints, read_run
from flaxcnn.training.evaluation import Evaluation, evaluation_batch_size, make_evaluator
from flaxcnn.training.experiment import Experiment, check_config, make_experiment
from flaxcnn.training.setup import open_dataset
from flaxcnn.training.state import TrainState

# Number of batches that threads decode, one each, while the devices compute another one.
_DECODED_AHEAD = 4
_TEST_SPLITS = ("test", "testing", "val", "valid", "validation")


def load_trained(
    workdir: str | Path, checkpoint: str = "latest", *, averaged: bool = False
) -> tuple[Experiment, TrainState]:
    """Returns the experiment of a run, and the train state of one of its checkpoints on the first device.

    Args:
      workdir: folder of the run.
      checkpoint: "latest", "best" (highest test accuracy), or the number of a step.
      averaged: whether the state contains the averaged parameters instead of the parameters.

    Raises:
      UserError: the folder holds no run, or the run has no such checkpoint or no averaged parameters.
    """
    keep_compiled_programs()
    workdir = local_path(workdir)
    experiment = _open_experiment(workdir)
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
        # Restoring needs only shapes and dtypes, so no parameters are initialized.
        like = jax.eval_shape(lambda: experiment.create_loop_state(experiment.optimizer()))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = checkpoints.restore(step, jax.tree.map(lambda leaf: leaf.update(sharding=sharding), like)).state
        return experiment, state.averaged() if averaged else state


def _open_experiment(workdir: Path) -> Experiment:
    run = read_run(workdir)
    class_names, image_shape = run["data"]["class_names"], run["data"]["image_shape"]
    config = from_dict(run["config"])
    check_config(config)
    return make_experiment(config, tuple(class_names), tuple(image_shape))


def open_data(experiment: Experiment, split: str | None = None) -> ImageDataset:
    """Opens a split of the dataset that a network was trained on; by default the test split of the run.

    Raises:
      UserError: the dataset or split is missing, or its classes or image sizes have changed.
    """
    config = experiment.config
    name = config.data.name
    if name.startswith(FOLDER) and not local_path(name.removeprefix(FOLDER)).is_dir():
        raise UserError(f"the data of the run is no longer in {name}; --data folder:PATH names where it lies now")
    dataset = open_dataset(config, split or config.data.test_split, training=False)
    source = dataset.source
    _print_notes(source)
    if source.class_names != experiment.class_names or dataset.image_shape != experiment.image_shape:
        raise UserError(
            f"data set {source.name} has other classes or sizes than the one that was trained on; --data {name} "
            f"evaluates it as another data set"
        )
    return dataset


def _print_notes(source: Source) -> None:
    """Prints the notes of a source to stderr, such as files of a folder that are left out."""
    for note in source.notes if is_primary() else ():
        print(note, file=sys.stderr)


def open_other_data(experiment: Experiment, name: str, split: str | None = None, *, workdir: Path) -> ImageDataset:
    """Opens a split of another dataset; labels are mapped to the trained classes by class name.

    Images are scaled and cropped to the trained shape as in `open_files`. If `split` is None, the split is:
      - for a folder without splits: the test split of the run if the images are those of the run, otherwise all
        images;
      - for other datasets: the split with the name of the run's test split, or with a usual name such as "test" or
        "validation".

    Args:
      experiment: the trained experiment; its configuration names the folder of prepared datasets.
      name: name of the dataset, see `flaxcnn.data.sources.opening.open_source`.
      split: name of the split to open, or None.
      workdir: folder of the run.

    Raises:
      UserError: the dataset or split is missing, or the dataset has a class that the network was not trained on.
    """
    data_dir = None if name.startswith(FOLDER) else experiment.config.data.data_dir
    source = _open_split(experiment, name, split, data_dir, workdir)
    _print_notes(source)
    return _in_shape(experiment, relabel(source, experiment.class_names))


def open_files(experiment: Experiment, paths: Sequence[str | Path]) -> ImageDataset:
    """Opens image files, and all images in folders, as a dataset of images of the trained shape.

    Each image is converted to gray or RGB and turned upright. Its shorter side is scaled to the longer side of the
    trained shape, and its center is cropped.

    Raises:
      UserError: a file does not exist, or a folder holds no images.
    """
    return _in_shape(experiment, folder.open_files(paths))


def _in_shape(experiment: Experiment, source: Source) -> ImageDataset:
    stored = source.image_shape == experiment.image_shape
    return ImageDataset(source, experiment.image_shape, crop="stored" if stored else "center")


def _open_split(
    experiment: Experiment, name: str, split: str | None, data_dir: str | None, workdir: Path
) -> Source:
    data = experiment.config.data
    if split is not None:
        return opening.open_source(name, split, data_dir)
    splits = opening.open_splits(name, data_dir)
    if name.startswith(FOLDER) and folder.is_flat(name):
        trained_on = read_run(workdir)["data"].get("fingerprint")
        is_the_runs = _fingerprint(name, data.train_split) == trained_on
        return opening.open_source(name, data.test_split if is_the_runs else "all")
    bases = [part.strip().partition("[")[0] for part in data.test_split.split("+")]
    if all(base in splits or base == "all" for base in bases):
        return opening.open_source(name, data.test_split, data_dir)
    usual = [each for each in _TEST_SPLITS if each in splits] or (list(splits) if len(splits) == 1 else [])
    if not usual:
        raise UserError(f"name a split of {name} with --split; it has {', '.join(splits)}")
    return opening.open_source(name, usual[0], data_dir)


def _fingerprint(name: str, split: str) -> str | None:
    try:
        return opening.open_source(name, split).fingerprint
    except UserError:  # there is no such split
        return None


def evaluate(experiment: Experiment, state: TrainState, dataset: ImageDataset | None = None) -> Evaluation:
    """Evaluates a train state exactly, on all devices.

    Args:
      experiment: configuration, network and preprocessing.
      state: train state with the parameters.
      dataset: split to evaluate on; by default the test split of the run.

    Raises:
      UserError: an image cannot be read and `data.bad_images` is not "skip", or the dataset is damaged.
    """
    config, dataset = experiment.config, dataset or open_data(experiment)
    strategy = Strategy()
    state = jax.device_put(state, strategy.replicated)
    batch_size = evaluation_batch_size(config, len(dataset.source), strategy)
    sizes, limit = {"test": batch_size}, memory_for_data()
    with open_loaders(config.data, strategy, {"test": dataset}, sizes, limit) as loaders:
        return make_evaluator(experiment, strategy, loaders["test"])(state)


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


def export_trained(experiment: Experiment, state: TrainState, path: str | Path) -> None:
    """Exports the trained network as a program or ONNX model, with a JSON file that describes it.

    The program maps uint8 images (N, H, W, C) of the dataset's shape to probabilities (N, classes). The JSON file
    holds the class names, and the steps from an image file to such an image. See `flaxcnn.export`.

    Args:
      experiment: network, preprocessing and class names.
      state: train state with the parameters.
      path: file to write; an ONNX model if it ends in `.onnx`.

    Raises:
      UserError: see `flaxcnn.export`.
    """
    export(
        path,
        experiment.model,
        state.variables,
        experiment.image_shape,
        preprocess=experiment.views,
        probabilities=True,
        class_names=experiment.class_names,
        preprocessing=describe_preprocessing(experiment.image_shape),
    )
