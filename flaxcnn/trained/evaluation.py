"""Evaluation of a trained network on a split."""

import jax

from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.loading.loader import open_loaders
from flaxcnn.parallel.memory import memory_for_data
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.trained.datasets import open_data
from flaxcnn.training.evaluation import Evaluation, evaluation_batch_size, make_evaluator
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.state import TrainState


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
