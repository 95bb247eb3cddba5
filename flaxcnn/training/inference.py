"""What was trained, put to use: evaluating a split, classifying pictures, exporting a program."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from flaxcnn.data import crops, pictures
from flaxcnn.errors import UserError, nearest
from flaxcnn.inference import Predictor, export
from flaxcnn.training.checkpoint import Checkpoints
from flaxcnn.training.compilation import keep_compiled_programs
from flaxcnn.training.distributed import is_primary
from flaxcnn.training.evaluation import Evaluation, evaluation_batch_size, make_evaluator
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.feed import memory_for_data, open_delivery, open_splits
from flaxcnn.training.parallel import Strategy
from flaxcnn.training.state import TrainState
from flaxcnn.training.workdir import has_checkpoints, open_experiment


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
    workdir = Path(workdir)
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


def evaluate(experiment: Experiment, state: TrainState, split: str | None = None) -> Evaluation:
    """Evaluates a state on a split of its data set, exactly, on all devices; None for the test split.

    Raises:
      UserError: the data set is not there, or has changed.
    """
    config = experiment.config
    delivery = open_delivery(config, split or config.data.test_split, training=False)
    source = delivery.source
    for note in source.notes if is_primary() else ():
        print(note, file=sys.stderr)
    if source.class_names != experiment.class_names or delivery.image_shape != experiment.image_shape:
        raise UserError(f"data set {source.name} has other classes or sizes than the one that was trained on")
    strategy = Strategy()
    state = jax.device_put(state, strategy.replicated)
    batch_size = evaluation_batch_size(config, len(source), strategy)
    with open_splits(config, strategy, {"test": delivery}, {"test": batch_size}, memory_for_data()) as splits:
        return make_evaluator(experiment, strategy)(state, splits["test"])


def make_predictor(experiment: Experiment, state: TrainState, batch_size: int) -> Predictor:
    """Returns a predictor for images (N, H, W, C), uint8 in the data set's shape, as evaluation sees them."""
    return Predictor(experiment.model, state.variables, batch_size=batch_size, views=experiment.views)


def export_trained(experiment: Experiment, state: TrainState, path: str | Path) -> None:
    """Writes a program from images (N, H, W, C), uint8 in the data set's shape, to probabilities (N, classes).

    The names of the classes come into a file beside it. See `flaxcnn.export`.

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
    )


def read_images(experiment: Experiment, paths: Sequence[str | Path]) -> np.ndarray:
    """Reads picture files into the data set's shape, (B, H, W, C) uint8.

    Each is turned to grey or RGB and upright, its shorter side is scaled to the longer side of that shape, and its
    centre is cut out.

    Raises:
      UserError: a file that is missing or is no picture, by name.
    """
    height, width, channels = experiment.image_shape
    images = []
    for path in map(Path, paths):
        try:
            encoded = path.read_bytes()
        except OSError as error:
            siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"cannot read {path}: {error.strerror}{nearest(path.name, siblings)}") from None
        try:
            square = crops.test_picture(encoded, channels, max(height, width))
        except pictures.BadPicture as reason:
            raise UserError(f"{path}: {reason}") from None
        top, left = (len(square) - height) // 2, (len(square) - width) // 2
        images.append(square[top : top + height, left : left + width])
    return np.stack(images)
