"""Classifying arrays of images: compiled once, in batches of one size, on all local devices."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxcnn.errors import UserError, first_line
from flaxcnn.inference.folding import Variables, fold_batch_norm
from flaxcnn.models.layers import Network

Array = jax.Array
Views = Callable[[Array], Sequence[Array]]


class Predictor:
    """A network and its variables as a function of any number of images.

    BatchNorm is folded away. A program is compiled for each size of images, at the first call with it; the last
    batch is filled up and what comes of that is cut off, so that the number of images compiles nothing anew.
    Batches are shared out over the devices of this process.
    """

    def __init__(self, model: Network, variables: Variables, *, batch_size: int = 32, views: Views | None = None):
        """Puts the variables on the devices.

        Args:
          model: a network of this package.
          variables: of the model.
          batch_size: images at a time, over all devices; rounded up to a multiple of their number.
          views: `views(images)`, from the images given, uint8 for instance, to the network's inputs; of several the
            softmax is averaged, see `average_views`. By default the images are the network's input.

        Raises:
          UserError: the batch size is not a whole number above 0, or the variables lack what the model has.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is a whole number above 0, got {batch_size}")
        self._takes_any = views is not None
        views = views or whole_images
        model, variables = fold_batch_norm(model, variables)
        mesh = Mesh(np.array(jax.local_devices()), ("devices",))
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("devices"))
        self._variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        # Not left to the partitioner of `jit`, which has every device compute grouped convolutions in full.
        self._program = jax.jit(
            jax.shard_map(
                lambda variables, images: average_views(model, variables, views(images)),
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec("devices")),
                out_specs=PartitionSpec("devices"),
                check_vma=False,
            )
        )

    def __call__(self, images: Any) -> np.ndarray:
        """Returns the logits (N, classes), float32, or float64 if computed so, of N images.

        Args:
          images: (N, H, W, C), what `views` takes, or else floating and normalised as the network was trained.

        Raises:
          UserError: images of another rank or size, or integers where normalised images are due.
        """
        images = np.asarray(images)
        if images.ndim != 4:
            raise UserError(f"images have shape (number, height, width, channels), got {images.shape}")
        if not self._takes_any and not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"the network takes normalised images of a floating dtype, got {images.dtype}; normalise them, or "
                f"give `views`, which does it"
            )
        logits: list[Any] = []
        for start in range(0, max(len(images), 1), self.batch_size):  # of no images, too, the width is known
            batch = images[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            if missing:
                batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
            with outside_meshes(), misfits_refused(images.shape):
                logits.append(self._program(self._variables, jax.device_put(batch, self._rows)))
            if len(logits) > 1:  # while the next batch is computed; no more than two lie on the devices
                logits[-2] = np.asarray(logits[-2])
        return np.concatenate([np.asarray(part) for part in logits])[: len(images)]

    def probabilities(self, images: Any) -> np.ndarray:
        """Returns the softmax of the logits of images, shaped and typed like them."""
        logits = self(images)
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return shares / shares.sum(axis=-1, keepdims=True)


def whole_images(images: Array) -> list[Array]:
    """Returns the one view of images that are the network's input already."""
    return [images]


def outside_meshes() -> contextlib.AbstractContextManager[Any]:
    """Returns a context without a mesh of the caller (`jax.set_mesh`), for programs with devices of their own."""
    return jax.set_mesh(Mesh(np.empty((), dtype=object), ()))


@contextlib.contextmanager
def misfits_refused(shape: tuple[int, ...]) -> Iterator[None]:
    """Says in one line that a network's variables are not those for images (N, H, W, C)."""
    try:
        yield
    except (
        flax.errors.ScopeParamShapeError,
        flax.errors.ScopeParamNotFoundError,
        flax.errors.ScopeCollectionNotFound,
    ) as error:
        size = "x".join(map(str, shape[1:]))
        raise UserError(f"the variables do not fit the model and images of {size}: {first_line(error)}") from None


def average_views(model: nn.Module, variables: Variables, views: Sequence[Array]) -> Array:
    """Returns the logits (B, K) of one view of each image, or the logarithm of the mean softmax over several.

    Views (B, H, W, C) of one size go through the network as one batch.
    """

    def apply(images: Array) -> Array:
        return cast(Array, model.apply(variables, images, train=False))

    if len(views) == 1:
        return apply(views[0])
    sizes: dict[tuple[int, ...], list[Array]] = {}
    for view in views:
        sizes.setdefault(view.shape, []).append(view)
    logits = []
    for alike in sizes.values():
        together = apply(jnp.concatenate(alike))
        logits += list(together.reshape(len(alike), -1, together.shape[-1]))
    return jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(each) for each in logits]), axis=0) - math.log(
        len(logits)
    )
