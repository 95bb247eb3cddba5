"""Convolutional networks as pure Flax linen modules, and a command line that trains them.

Example:
  >>> import flaxcnn, jax, jax.numpy as jnp
  >>> flaxcnn.list_models("resnet*")[:3]
  ['resnet101', 'resnet110', 'resnet152']
  >>> model = flaxcnn.create_model("resnet18", num_classes=10)
  >>> images = jnp.zeros((8, 64, 64, 3))
  >>> variables = model.init(jax.random.key(0), images, train=False)
  >>> logits = model.apply(variables, images, train=False)
  >>> logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
  >>> model, variables = flaxcnn.load_pretrained("resnet50")  # torchvision's weights

`flaxcnn.training` trains networks, `flaxcnn.data` loads and augments images, `flaxcnn.ops` implements convolution,
pooling and normalization, and `flaxcnn.weights` converts weights from and to PyTorch.
"""

from typing import TYPE_CHECKING

from flaxcnn import lazy

if TYPE_CHECKING:
    from flaxcnn.errors import UserError
    from flaxcnn.inference import Predictor, export, fold_batch_norm
    from flaxcnn.models import ModelInfo, create_model, list_models, model_info
    from flaxcnn.weights import load_pretrained

__version__ = "0.1.0"
__all__ = [
    "ModelInfo",
    "Predictor",
    "UserError",
    "create_model",
    "export",
    "fold_batch_norm",
    "list_models",
    "load_pretrained",
    "model_info",
]

# Lazy, because the processes that decode images import this package too, and must not wait for JAX.
if not TYPE_CHECKING:  # a type checker that sees `__getattr__` accepts every name
    __getattr__ = lazy.exports(
        __name__,
        {
            "flaxcnn.errors": ("UserError",),
            "flaxcnn.inference": ("Predictor", "export", "fold_batch_norm"),
            "flaxcnn.models": ("ModelInfo", "create_model", "list_models", "model_info"),
            "flaxcnn.weights": ("load_pretrained",),
        },
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
