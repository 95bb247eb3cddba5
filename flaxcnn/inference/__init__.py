"""A trained network put to use: BatchNorm folded away, prediction compiled, programs exported."""

from flaxcnn.inference.exporting import export
from flaxcnn.inference.folding import fold_batch_norm
from flaxcnn.inference.image_files import describe_preprocessing
from flaxcnn.inference.prediction import Predictor

__all__ = ["Predictor", "describe_preprocessing", "export", "fold_batch_norm"]
