"""`digits`, a TFDS dataset of scikit-learn's 1,797 handwritten digits, prepared without TensorFlow or network.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, the part that scikit-learn contains. Each of 8x8 pixels is a count of ink pixels from 0 to 16.
"""

import io

import cv2
import numpy as np
import tensorflow_datasets as tfds

TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """Images (8, 8, 1) uint8, scaled from 0..16 to 0..255. Every fifth is in `test` (359), the others in `train`.

    scikit-learn defines no split. This one is fixed, so that accuracies can be compared. `train` has 1,438 images.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 pixels, as shipped with scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool):
        from sklearn.datasets import load_digits  # slow to import, and only needed here

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            if (index % TEST_EVERY == TEST_EVERY - 1) == test:
                # TFDS needs TensorFlow to encode arrays, but stores encoded images unchanged.
                yield index, {"image": io.BytesIO(cv2.imencode(".png", image)[1]), "label": int(label)}
