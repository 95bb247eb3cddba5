"""Reading, downloading and converting weight files."""

from flaxcnn.weights.convert import from_torch, to_torch
from flaxcnn.weights.files import read_state_dict
from flaxcnn.weights.pretrained import load_pretrained

__all__ = ["from_torch", "load_pretrained", "read_state_dict", "to_torch"]
