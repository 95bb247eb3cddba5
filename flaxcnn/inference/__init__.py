"""Inference with a trained network: folding of BatchNorm, compiled prediction, and export of programs."""

from flaxcnn.inference.exporting import export
from flaxcnn.inference.folding import fold_batch_norm
from flaxcnn.inference.image_files import describe_preprocessing
from flaxcnn.inference.predictor import Predictor

__all__ = ["Predictor", "describe_preprocessing", "export", "fold_batch_norm"]
