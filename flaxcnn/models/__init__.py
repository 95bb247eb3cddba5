"""The networks, one family a file; importing this package registers them all."""

from flaxcnn.models import alexnet, anynet, densenet, googlenet, lenet, nin, resnet, vgg  # noqa: F401
from flaxcnn.models.registry import ModelInfo, create_model, list_models, model_info

__all__ = ["ModelInfo", "create_model", "list_models", "model_info"]
