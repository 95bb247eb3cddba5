"""LeNet-5, as it is taught and as it was published.

LeCun, Bottou, Bengio, Haffner: "Gradient-Based Learning Applied to Document Recognition", Proceedings of the
IEEE 86(11), 1998, section II.B. `LeNet5` is the simplified form of the textbooks (d2l.ai, section 7.6);
`LeNet5Paper` is the published network, whose differences from the paper stand in its docstring.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.models import layers
from flaxcnn.models.layers import Array, Dtype
from flaxcnn.models.registry import register


class LeNet5(nn.Module):
    """LeNet-5 as taught: two convolutions, each pooled by 2x2, and three fully connected layers.

    Kernels start from Glorot's uniform distribution and biases from 0, as in d2l.ai. `norm`, if given, follows
    every convolution and every hidden fully connected layer and comes before the activation (Ioffe and Szegedy
    2015). With `num_classes=0` the network ends in the 84 activations that feed the classifier.
    """

    num_classes: int = 10
    activation: layers.Activation = nn.sigmoid
    pooling: layers.Pooling = layers.average_pool_2x2
    norm: layers.Norm | None = None
    bn_axis_name: str | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        """Declares the layers."""
        common = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(
            nn.Conv, kernel_size=(5, 5), kernel_init=nn.initializers.xavier_uniform(), **common
        )
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), **common)
        norm = functools.partial(layers.make_norm, self.norm, axis_name=self.bn_axis_name, **common)
        self.conv1, self.norm1 = conv(6, padding=2), norm()
        self.conv2, self.norm2 = conv(16, padding=0), norm()
        self.fc1, self.norm3 = dense(120), norm()
        self.fc2, self.norm4 = dense(84), norm()
        if self.num_classes:
            self.fc3 = dense(self.num_classes)

    def features(self, images: Array, *, train: bool) -> dict[str, Array]:
        """Returns the maps after each pooling: pool1 (B, H/2, W/2, 6) and pool2 (B, H/4 - 2, W/4 - 2, 16)."""
        layers.check_images("lenet5", images, minimum_size=12)
        pool1 = self.pooling(self._activate(self.conv1(images), self.norm1, train))
        pool2 = self.pooling(self._activate(self.conv2(pool1), self.norm2, train))
        return {"pool1": pool1, "pool2": pool2}

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images (B, H, W, C), at least 12x12, to logits (B, num_classes), float32."""
        x = self.features(images, train=train)["pool2"]
        x = x.reshape(x.shape[0], -1)
        x = self._activate(self.fc1(x), self.norm3, train)
        x = self._activate(self.fc2(x), self.norm4, train)
        return layers.as_logits(self.fc3(x) if self.num_classes else x)

    def _activate(self, x: Array, norm: nn.Module | None, train: bool) -> Array:
        return self.activation(layers.apply_norm(norm, x, train=train))


# Table I of the paper: the maps of S2 that each of the 16 maps of C3 sees. 60 connections in all.
C3_CONNECTIONS: tuple[tuple[int, ...], ...] = (
    *(tuple(sorted((i + k) % 6 for k in range(3))) for i in range(6)),
    *(tuple(sorted((i + k) % 6 for k in range(4))) for i in range(6)),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# The digits of the paper's figure 3: seven pixels wide, twelve high, one string a row, ten digits side by side.
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
    """Returns the fixed targets of the output units, (num_classes, 84), each +1 (ink) or -1 (paper).

    The first ten are the digits' bitmaps. Further classes get random codes drawn once from a fixed seed, which
    the paper names as the other way to choose them (section II.B).
    """
    rows = [row.split() for row in DIGIT_BITMAPS.split("\n") if row]
    digits = [[1.0 if pixel == "#" else -1.0 for row in rows for pixel in row[digit]] for digit in range(10)]
    bits = np.unpackbits(np.random.Philox(key=1998).random_raw(2 * max(num_classes - 10, 0)).view(np.uint8))
    others = bits.reshape(-1, 128)[:, :84] * 2.0 - 1.0
    return np.concatenate([np.asarray(digits), others])[:num_classes]


def squash(x: Array) -> Array:
    """The paper's scaled hyperbolic tangent, 1.7159 tanh(2x/3), whose value at +-1 is +-1."""
    return 1.7159 * jnp.tanh(2.0 / 3.0 * x)


def uniform_by_fan_in(fan_in: float) -> nn.initializers.Initializer:
    """The paper's initialisation: uniform in +-2.4 / fan_in, for weights and biases alike (appendix A)."""
    bound = 2.4 / fan_in

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Subsampling(nn.Module):
    """S2 and S4: the sum over each 2x2 block, times one trainable coefficient a map, plus one bias a map."""

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H/2, W/2, C)."""
        init = uniform_by_fan_in(4)
        coefficient = self.param("coefficient", init, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", init, (x.shape[-1],), self.param_dtype)
        x, coefficient, bias = nn.dtypes.promote_dtype(x, coefficient, bias, dtype=self.dtype)
        return 4 * layers.average_pool_2x2(x) * coefficient + bias


class PartialConvolution(nn.Module):
    """C3: a 5x5 convolution in which each output map sees only the input maps that its table entry names.

    Only the connections that exist have weights: the parameter `kernel` is (5, 5, connections), and is laid out
    with zeros between for the convolution.
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

        def kernel_init(key, shape, dtype):
            return uniform_by_fan_in(1)(key, shape, dtype) / fan_in[outputs].astype(dtype)

        def bias_init(key, shape, dtype):
            return uniform_by_fan_in(1)(key, shape, dtype) / fan_in.astype(dtype)

        kernel = self.param("kernel", kernel_init, (5, 5, len(outputs)), self.param_dtype)
        bias = self.param("bias", bias_init, (len(self.connections),), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        dense = jnp.zeros((5, 5, x.shape[-1], len(self.connections)), kernel.dtype)
        dense = dense.at[:, :, inputs, outputs].set(kernel)
        convolved = jax.lax.conv_general_dilated(
            x, dense, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return convolved + bias


class LeNet5Paper(nn.Module):
    """LeNet-5 as published: 60,000 trainable parameters, layer names of the paper's figure 2.

    The squashing function follows every layer up to F6. The output units are radial basis functions: unit i
    measures the squared distance of F6's 84 values from a fixed bitmap of class i, and the logit is minus that
    distance, so that softmax cross-entropy on the logits is the paper's criterion (9) without its constant
    "rubbish" class. Pixels should be scaled to -0.1 (paper) and 1.175 (ink).

    What differs from the paper: the bitmaps are read off its figure 3, as public re-implementations do; classes
    beyond the ten digits get random codes; maps of C5 larger than 1x1 (images beyond 32x32) are averaged. With
    `num_classes=0` the network ends in F6.
    """

    num_classes: int = 10
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        """Declares the layers."""
        common = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.s2 = Subsampling(**common)
        self.c3 = PartialConvolution(C3_CONNECTIONS, **common)
        self.s4 = Subsampling(**common)
        c5_init, f6_init = uniform_by_fan_in(25 * 16), uniform_by_fan_in(120)
        self.c5 = nn.Conv(120, (5, 5), padding=0, kernel_init=c5_init, bias_init=c5_init, **common)
        self.f6 = nn.Dense(84, kernel_init=f6_init, bias_init=f6_init, **common)

    @nn.compact
    def _c1(self, images: Array) -> Array:
        # Built where it is called, because its initial range depends on the number of input channels.
        init = uniform_by_fan_in(25 * images.shape[-1])
        common = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return nn.Conv(6, (5, 5), padding=0, kernel_init=init, bias_init=init, name="c1", **common)(images)

    def features(self, images: Array, *, train: bool) -> dict[str, Array]:
        """Returns the maps of S2 (B, 14, 14, 6), S4 (B, 5, 5, 16) and C5 (B, 1, 1, 120), for 32x32 images."""
        del train  # nothing in this network depends on it
        layers.check_images("lenet5_1998", images, minimum_size=32)
        s2 = squash(self.s2(squash(self._c1(images))))
        s4 = squash(self.s4(squash(self.c3(s2))))
        return {"s2": s2, "s4": s4, "c5": squash(self.c5(s4))}

    def __call__(self, images: Array, *, train: bool) -> Array:
        """Maps images (B, H, W, C), at least 32x32, to logits (B, num_classes), float32."""
        c5 = self.features(images, train=train)["c5"].mean(axis=(1, 2))
        f6 = layers.as_logits(squash(self.f6(c5)))
        if not self.num_classes:
            return f6
        codes = jnp.asarray(class_codes(self.num_classes), f6.dtype)
        return -jnp.square(f6[:, None, :] - codes).sum(axis=-1)


_PAPER = "LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998"

register(
    "lenet5",
    LeNet5,
    summary="as taught: 5x5x6 padded, 5x5x16, 120-84-classes; sigmoid, average pooling",
    paper=_PAPER,
    input_shape=(28, 28, 1),
    minimum_size=12,
    num_classes=10,
)
register(
    "lenet5_1998",
    LeNet5Paper,
    summary="as published: trainable subsampling, partial C3, scaled tanh, radial basis function outputs",
    paper=_PAPER,
    input_shape=(32, 32, 1),
    minimum_size=32,
    num_classes=10,
)
