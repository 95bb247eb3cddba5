"""Weights, images and fingerprints computed from names and shapes alone, so that two programs can agree on them.

numpy only: the script that runs torchvision and the tests that run flaxcnn both import it.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def values(name: str, shape: Sequence[int]) -> np.ndarray:
    """Uniform float64 numbers in [-1, 1) that depend on nothing but the name and the shape."""
    # random_raw, because numpy promises the same raw stream in every version, but not the same distributions.
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return ((raw >> 11) * 2.0**-52 - 1.0).reshape(shape)


def parameter(torch_name: str, shape: Sequence[int]) -> np.ndarray:
    """The value of one entry of a torch state_dict; none is left at a default that would hide a mix-up."""
    kind = torch_name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    drawn = values(torch_name, shape)
    if kind in ("running_mean", "bias"):
        return 0.5 * drawn
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):
        return 1 + 0.5 * drawn
    if kind == "weight":
        fan_in = math.prod(shape[1:])
        return drawn * math.sqrt(3 / fan_in)  # the draw has variance 1/3; this keeps the scale of the signal
    raise ValueError(f"no formula for {torch_name}")


def state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The values of all entries of a torch state_dict, given their shapes."""
    return {name: parameter(name, shape) for name, shape in shapes.items()}


def images(batch: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A batch of images, NHWC, of about unit variance."""
    return 2 * values("images", (batch, height, width, channels))


def fingerprint(array: np.ndarray) -> list[float]:
    """Root mean square and three fixed random projections of an array; give maps as NHWC."""
    array = np.asarray(array, np.float64)
    root_mean_square = math.sqrt(np.mean(array**2))
    return [root_mean_square] + [projection(array, f"projection{k}") for k in (1, 2, 3)]


def projection(array: np.ndarray, name: str) -> float:
    """The inner product with `values(name, ...)`, scaled so that it does not grow with the array."""
    return float(np.sum(array * values(name, array.shape)) / math.sqrt(array.size))
