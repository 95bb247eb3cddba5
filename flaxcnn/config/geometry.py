"""Image sizes in evaluation, for decoding, preprocessing and validation alike."""

import dataclasses

from flaxcnn.config.schema import DataConfig, EvaluationConfig


@dataclasses.dataclass(frozen=True)
class EvaluationGeometry:
    """Sizes (both height and width) of images in evaluation, in pixels; None keeps the stored size.

    Attributes:
      decode_size: size to which the host decodes images if their stored sizes differ.
      scales: sizes at which the whole image is classified; empty if crops are classified instead.
      resize_size: size to which an image is resized before it is cropped.
      crop_size: size of each crop.
      smallest: smallest of all sizes that the configuration names, including that of training.
    """

    decode_size: int | None
    scales: tuple[int, ...]
    resize_size: int | None
    crop_size: int | None
    smallest: int | None

    @classmethod
    def of(cls, data: DataConfig, evaluation: EvaluationConfig) -> "EvaluationGeometry":
        """Returns the sizes that a configuration leads to."""
        crop_size = evaluation.image_size or data.image_size
        resize_size = evaluation.shorter_side or crop_size
        sizes = (data.image_size, evaluation.image_size, evaluation.shorter_side, *evaluation.scales)
        return cls(
            decode_size=max(evaluation.scales, default=resize_size),
            scales=evaluation.scales,
            resize_size=resize_size,
            crop_size=crop_size,
            smallest=min(filter(None, sizes), default=None),
        )
