"""LeNet-5, as it is taught and as it was published.

LeCun, Bottou, Bengio, Haffner: "Gradient-Based Learning Applied to Document Recognition", Proceedings of the
IEEE 86(11), 1998, section II.B. `LeNet5` is the simplified network of the textbooks (d2l.ai, section 7.6);
`LeNet5Paper` is the published one, whose docstring lists its differences from the paper.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import NAMED_FUNCTIONS, Activation, Array, Dtype, Norm, Pooling
from flaxcnn.models.network import Network
from flaxcnn.models.registry import register
from flaxcnn.ops import average_pool, global_average_pool


class LeNet5(Network):
    """LeNet-5 as taught: two convolutions, each followed by 2x2 pooling, and three fully connected layers.

    Kernels are initialized by Glorot's uniform distribution and biases to 0, as in d2l.ai. With `num_classes=0` the
    network returns the 84 activations before the classifier.

    Attributes:
      activation: activation function after every layer but the classifier.
      pooling: pooling function that halves height and width.
      norm: constructor of the norm before each activation (Ioffe and Szegedy 2015), or None.
    """

    num_classes: int = 10
    activation: Activation = nn.sigmoid
    pooling: Pooling = NAMED_FUNCTIONS["pooling"]["average"]
    norm: Norm | None = None
    bn_axis_name: str | None = None

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images: the last pooling needs 2x2 pixels."""
        return 12

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps "pool1" and "pool2", and the logits."""
        initializer, norm = initializers.GLOROT, self.bound_norm(train)
        conv = self.conv_norm(train, initializer=initializer, use_bias=True, activation=self.activation)
        pool1 = self.pooling(conv(6, 5, padding=2, name="conv1")(images))
        pool2 = self.pooling(conv(16, 5, padding=0, name="conv2")(pool1))
        x = layers.flatten(pool2)
        for name, features in (("fc1", 120), ("fc2", 84)):
            x = self.dense(features, initializer, name=name)(x)
            if norm is not None:
                x = norm(name=f"{name}_norm")(x)
            x = self.activation(x)
        return {"pool1": pool1, "pool2": pool2}, self.classify(x, initializer)


# Table I of the paper: for each of the 16 channels of C3, the channels of S2 that it is connected to (60 in all).
C3_CONNECTIONS: tuple[tuple[int, ...], ...] = (
    *(tuple(sorted((i + k) % 6 for k in range(3))) for i in range(6)),
    *(tuple(sorted((i + k) % 6 for k in range(4))) for i in range(6)),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# Bitmaps of the ten digits in the paper's figure 3, side by side, each seven pixels wide and twelve high.
DIGIT_BITMAPS = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""


def class_codes(num_classes: int) -> np.ndarray:
    """Returns the fixed target vectors of the output units, (num_classes, 84), with values +1 (ink) and -1 (paper).

    The first ten are bitmaps of the digits. Further classes get random codes from a fixed seed; the paper names
    random codes as the alternative to bitmaps (section II.B).
    """
    rows = [row.split() for row in DIGIT_BITMAPS.split("\n") if row]
    digits = [[1.0 if pixel == "#" else -1.0 for row in rows for pixel in row[digit]] for digit in range(10)]
    bits = np.unpackbits(np.random.Philox(key=1998).random_raw(2 * max(num_classes - 10, 0)).view(np.uint8))
    others = bits.reshape(-1, 128)[:, :84] * 2.0 - 1.0
    return np.concatenate([np.asarray(digits), others])[:num_classes]


def squash(x: Array) -> Array:
    """Computes the paper's scaled hyperbolic tangent 1.7159 tanh(2x/3), which maps 1 to 1 and -1 to -1."""
    return 1.7159 * jnp.tanh(2.0 / 3.0 * x)


def uniform_by_fan_in(fan_in: float) -> initializers.LayerInitializer:
    """Returns the paper's initializer: kernel and bias are uniform in +-2.4 / fan_in (appendix A)."""
    init = initializers.symmetric_uniform(2.4 / fan_in)
    return initializers.LayerInitializer(init, lambda _: init)


class Subsampling(nn.Module):
    """Layers S2 and S4: sum over each 2x2 window, times a trainable coefficient, plus a bias, both per channel."""

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H/2, W/2, C)."""
        init = uniform_by_fan_in(4).kernel
        coefficient = self.param("coefficient", init, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", init, (x.shape[-1],), self.param_dtype)
        x, coefficient, bias = promote_dtype(x, coefficient, bias, dtype=self.dtype)
        return 4 * average_pool(x, 2, 2) * layers.by_channel(coefficient) + layers.by_channel(bias)


class PartialConvolution(nn.Module):
    """Layer C3: a 5x5 convolution in which each output channel depends on some of the input channels.

    Only existing connections have weights: the parameter `kernel` has shape (5, 5, number of connections). For the
    convolution it is scattered into a dense kernel of zeros.

    Attributes:
      connections: for each output channel, the indices of the input channels that it depends on.
    """

    connections: tuple[tuple[int, ...], ...]
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, 6) to (B, H - 4, W - 4, 16)."""
        outputs = np.repeat(np.arange(len(self.connections)), [len(inputs) for inputs in self.connections])
        inputs = np.concatenate(self.connections)
        fan_in = 25 * np.bincount(outputs)

        def kernel_init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
            return uniform_by_fan_in(1).kernel(key, shape, dtype) / fan_in[None, None, outputs].astype(dtype)

        def bias_init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
            return uniform_by_fan_in(1).kernel(key, shape, dtype) / fan_in.astype(dtype)

        kernel = self.param("kernel", kernel_init, (5, 5, len(outputs)), self.param_dtype)
        bias = self.param("bias", bias_init, (len(self.connections),), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        dense = jnp.zeros((5, 5, x.shape[-1], len(self.connections)), kernel.dtype)
        dense = dense.at[:, :, inputs, outputs].set(kernel)
        convolved = jax.lax.conv_general_dilated(
            x, dense, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return convolved + layers.by_channel(bias)


class LeNet5Paper(Network):
    """LeNet-5 as published: 60,000 trainable parameters, with the layer names of the paper's figure 2.

    The activation function `squash` follows every layer up to F6. The output units are radial basis functions: the
    logit of class i is minus the squared distance of F6's 84 values from a fixed bitmap of class i. Softmax
    cross-entropy on these logits is the paper's criterion (9) without its constant "rubbish" class. Pixels should
    be scaled to -0.1 (paper) and 1.175 (ink).

    Differences from the paper: the bitmaps are read off its figure 3, as in public re-implementations; classes
    beyond the ten digits get random codes; if C5 is larger than 1x1 (images larger than 32x32), it is averaged over
    its pixels. With `num_classes=0` the network returns F6.
    """

    num_classes: int = 10

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images: C5 needs 5x5 pixels."""
        return 32

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps s2, s4 and c5 (14x14x6, 5x5x16 and 1x1x120 for 32x32 images), and the logits."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = self.conv_norm(train, kernel_size=5, padding=0, activation=squash)
        c1 = conv(6, initializer=uniform_by_fan_in(25 * images.shape[-1]), name="c1")(images)
        s2 = squash(Subsampling(**dtypes, name="s2")(c1))
        c3 = squash(PartialConvolution(C3_CONNECTIONS, **dtypes, name="c3")(s2))
        s4 = squash(Subsampling(**dtypes, name="s4")(c3))
        c5 = conv(120, initializer=uniform_by_fan_in(25 * 16), name="c5")(s4)
        f6 = squash(self.dense(84, uniform_by_fan_in(120), name="f6")(global_average_pool(c5)))
        maps = {"s2": s2, "s4": s4, "c5": c5}
        if not self.num_classes:
            return maps, f6
        f6 = f6.astype(jnp.promote_types(f6.dtype, jnp.float32))
        codes = jnp.asarray(class_codes(self.num_classes), f6.dtype)
        return maps, -jnp.square(f6[:, None, :] - codes[None]).sum(axis=-1)


_PAPER = "LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998"

register(
    "lenet5",
    LeNet5,
    summary="as taught: 5x5x6 padded, 5x5x16, 120-84-classes; sigmoid, average pooling",
    paper=_PAPER,
    input_shape=(28, 28, 1),
    num_classes=10,
)
register(
    "lenet5_1998",
    LeNet5Paper,
    summary="as published: trainable subsampling, partial C3, scaled tanh, radial basis function outputs",
    reported="0.95 % error on MNIST",
    paper=_PAPER,
    input_shape=(32, 32, 1),
    num_classes=10,
)
