"""The classical convolutional networks as pure Flax linen modules, and the script that trains them."""

import importlib

__version__ = "0.1.0"

# Where each public name lies. It is imported when it is asked for, because the processes that decode pictures
# import this package too, and must not wait for JAX.
_HOMES = {
    "ModelInfo": "flaxcnn.models",
    "Predictor": "flaxcnn.inference",
    "UserError": "flaxcnn.errors",
    "create_model": "flaxcnn.models",
    "export": "flaxcnn.inference",
    "fold_batch_norm": "flaxcnn.inference",
    "list_models": "flaxcnn.models",
    "load_pretrained": "flaxcnn.weights",
    "model_info": "flaxcnn.models",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
