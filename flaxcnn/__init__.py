"""The classical convolutional networks as pure Flax linen modules, and the script that trains them."""

from flaxcnn.errors import UserError
from flaxcnn.models import ModelInfo, create_model, list_models, model_info
from flaxcnn.weights import load_pretrained

__version__ = "0.1.0"
__all__ = ["ModelInfo", "UserError", "create_model", "list_models", "load_pretrained", "model_info"]
