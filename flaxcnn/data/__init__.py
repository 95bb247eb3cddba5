"""From datasets to batches: opening, decoding, loading and augmenting images.

`open_source` opens a split of encoded images, which `ImageDataset` decodes. `mixup` and `cutmix` augment a whole
batch. All other augmentations take a PRNG key and one image (H, W, C); for a batch, use `jax.vmap`.

    sources      splits of encoded images, from TFDS datasets and from folders
    tfds         builders and preparation of TFDS datasets
    resizing     copies of a dataset with smaller images
    decoding     from encoded images to uint8 arrays, on the host
    dataset      `ImageDataset`: decodes and crops the images of a split
    loading      the order of examples, and loading batches onto the devices
    augment      augmentation inside the training step
    preprocess   from uint8 images to the model input, for training and for evaluation
    time_series  time series as images
"""

from typing import TYPE_CHECKING

from flaxcnn import lazy

if TYPE_CHECKING:
    from flaxcnn.data.augment.color import color_jitter, pca_lighting
    from flaxcnn.data.augment.erasing import random_erasing
    from flaxcnn.data.augment.geometry import alternating_flip, random_crop, random_flip, random_translation
    from flaxcnn.data.augment.mixup import cutmix, mixup
    from flaxcnn.data.augment.policies import rand_augment, trivial_augment_wide
    from flaxcnn.data.dataset import ImageDataset
    from flaxcnn.data.decoding.errors import BadImage
    from flaxcnn.data.loading.sampler import evaluation_indices, training_indices
    from flaxcnn.data.sources.opening import open_source, open_splits
    from flaxcnn.data.sources.protocol import Source

__all__ = [
    "BadImage",
    "ImageDataset",
    "Source",
    "alternating_flip",
    "color_jitter",
    "cutmix",
    "evaluation_indices",
    "mixup",
    "open_source",
    "open_splits",
    "pca_lighting",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_translation",
    "training_indices",
    "trivial_augment_wide",
]

# Lazy, because the processes that decode images import this package too, and must not wait for JAX.
if not TYPE_CHECKING:  # a type checker that sees `__getattr__` accepts every name
    __getattr__ = lazy.exports(
        __name__,
        {
            "flaxcnn.data.augment.color": ("color_jitter", "pca_lighting"),
            "flaxcnn.data.augment.erasing": ("random_erasing",),
            "flaxcnn.data.augment.geometry": (
                "alternating_flip",
                "random_crop",
                "random_flip",
                "random_translation",
            ),
            "flaxcnn.data.augment.mixup": ("cutmix", "mixup"),
            "flaxcnn.data.augment.policies": ("rand_augment", "trivial_augment_wide"),
            "flaxcnn.data.dataset": ("ImageDataset",),
            "flaxcnn.data.decoding.errors": ("BadImage",),
            "flaxcnn.data.loading.sampler": ("evaluation_indices", "training_indices"),
            "flaxcnn.data.sources.opening": ("open_source", "open_splits"),
            "flaxcnn.data.sources.protocol": ("Source",),
        },
    )


def __dir__() -> list[str]:
    return list(__all__)
