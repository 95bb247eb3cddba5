"""Convolutional networks, one family per module. Importing this package registers all of them by name."""

from flaxcnn.models import alexnet, anynet, densenet, googlenet, lenet, nin, resnet, vgg  # noqa: F401
from flaxcnn.models.registry import ModelInfo, create_model, list_models, model_info

__all__ = ["ModelInfo", "create_model", "list_models", "model_info"]
