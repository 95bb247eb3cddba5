"""Export of a trained network as a program or ONNX model."""

from pathlib import Path

from flaxcnn.inference import describe_preprocessing, export
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.state import TrainState


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
