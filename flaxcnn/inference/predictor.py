"""Classification of arrays of images, in batches of fixed size, on all local devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxcnn.errors import UserError
from flaxcnn.inference.folding import Variables, fold_batch_norm
from flaxcnn.inference.mismatches import mismatch_as_user_error
from flaxcnn.inference.views import Views, average_views, whole_images
from flaxcnn.models.network import Network
from flaxcnn.parallel.meshes import without_mesh


class Predictor:
    """Callable that returns the logits of any number of images, for a network and its variables.

    BatchNorm is folded into the convolutions. A program is compiled for each image size, at the first call with
    that size. The last batch is padded, and the results of the padding are dropped, so a different number of images
    never causes a compilation. Batches are sharded over the devices of this process.

    Attributes:
      batch_size: number of images per batch over all devices.

    Example:
      >>> predict = flaxcnn.Predictor(model, variables, preprocess=lambda images: [(images / 255 - mean) / std])
      >>> probabilities = predict.probabilities(images)  # uint8 (N, H, W, C) -> float32 (N, classes)
    """

    def __init__(
        self, model: Network, variables: Variables, *, batch_size: int = 32, preprocess: Views | None = None
    ):
        """Copies the variables to all local devices.

        Args:
          model: a network of this package.
          variables: variables of the model.
          batch_size: number of images per batch over all devices, rounded up to a multiple of the number of
            devices.
          preprocess: `preprocess(images)`, traced by JAX, which maps a batch of the images that are passed to
            calls, such as uint8 (B, H, W, C), to a list of model inputs. With several inputs (test-time
            augmentation) the softmax is averaged. By default the images are the model input.

        Raises:
          UserError: the batch size is not a whole number above 0, or variables of the model are missing.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is a whole number above 0, got {batch_size}")
        self._takes_any_dtype = preprocess is not None
        preprocess = preprocess or whole_images
        model, variables = fold_batch_norm(model, variables)
        mesh = Mesh(np.array(jax.local_devices()), ("devices",))
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("devices"))
        self._variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        # `shard_map`, because with `jit` XLA's partitioner makes every device compute grouped convolutions in full.
        self._program = jax.jit(
            jax.shard_map(
                lambda variables, images: average_views(model, variables, preprocess(images)),
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec("devices")),
                out_specs=PartitionSpec("devices"),
                check_vma=False,
            )
        )

    def __call__(self, images: Any) -> np.ndarray:
        """Returns the logits (N, classes) of N images, in float32, or in float64 if the model computes in float64.

        If `preprocess` returns several model inputs per image, the result is the logarithm of the mean softmax.

        Args:
          images: images (N, H, W, C) for `preprocess`; without `preprocess`, floating and normalized as in
            training.

        Raises:
          UserError: the images do not have four axes or do not fit the network, or they are integers without
            `preprocess`.
        """
        images = np.asarray(images)
        if images.ndim != 4:
            raise UserError(f"images have shape (number, height, width, channels), got {images.shape}")
        if not self._takes_any_dtype and not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"the network takes normalized images of a floating dtype, got {images.dtype}; normalize them, or "
                f"pass `preprocess`, a function that does"
            )
        logits: list[Any] = []
        for start in range(0, max(len(images), 1), self.batch_size):  # without images, one batch gives the classes
            batch = images[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            if missing:
                batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
            with without_mesh(), mismatch_as_user_error(images.shape):
                logits.append(self._program(self._variables, jax.device_put(batch, self._rows)))
            if len(logits) > 1:  # results are fetched while the next batch is computed: at most two are on devices
                logits[-2] = np.asarray(logits[-2])
        return np.concatenate([np.asarray(part) for part in logits])[: len(images)]

    def probabilities(self, images: Any) -> np.ndarray:
        """Returns the class probabilities (N, classes) of N images, the softmax of the logits; see `__call__`."""
        logits = self(images)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)
