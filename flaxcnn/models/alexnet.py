"""AlexNet, as published and in later variants.

Krizhevsky, Sutskever, Hinton: "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012 (two
towers on two GPUs); Krizhevsky: "One weird trick for parallelizing convolutional neural networks", 2014 (the
single tower that torchvision ships as `alexnet`).
"""

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.models.layers import Array, Norm
from flaxcnn.models.network import Network
from flaxcnn.models.registry import register
from flaxcnn.ops import adaptive_average_pool, local_response_norm, max_pool


class AlexNet(Network):
    """Five convolutions, overlapping 3x3/2 max pooling after the first, second and fifth, and three dense layers.

    The defaults give torchvision's `alexnet`. With `pooled_size=0` the number of inputs of `fc6` depends on the
    image size. With `num_classes=0` the network returns the activations of `fc7`.

    Attributes:
      widths: output channels of the five convolutions.
      kernel_sizes: kernel sizes of the five convolutions, in pixels. All but the first convolution keep the size of
        the feature map.
      groups: number of channel groups of each convolution, 2 for the paper's two towers.
      relu_after: for each convolution, whether a ReLU follows.
      conv1_padding: number of zeros on each side of the image; conv1 has stride 4.
      local_response_norm: whether local response normalization follows the ReLU of conv1 and conv2, as in the
        paper.
      norm: constructor of the norm after the ReLU of each convolution, or None.
      pooled_size: height and width to which the last feature map is pooled adaptively, or 0 for no such pooling.
      hidden: number of outputs of fc6 and of fc7.
      dropout_rate: probability of dropout at fc6 and fc7.
      dropout_after: whether dropout follows fc6 and fc7 (the paper) instead of preceding them (torchvision).
      paper_initialization: whether to initialize as in the paper instead of as in torch: normally distributed
        kernels with standard deviation 0.01; biases 1 in conv2, conv4, conv5, fc6 and fc7, and 0 elsewhere.
    """

    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    kernel_sizes: tuple[int, ...] = (11, 5, 3, 3, 3)
    groups: tuple[int, ...] = (1, 1, 1, 1, 1)
    relu_after: tuple[bool, ...] = (True, True, True, True, True)
    conv1_padding: int = 2
    local_response_norm: bool = False
    norm: Norm | None = None
    bn_axis_name: str | None = None
    pooled_size: int = 6
    hidden: int = 4096
    dropout_rate: float = 0.5
    dropout_after: bool = False
    paper_initialization: bool = False

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images: the last pooling needs 3x3 pixels, the first 15x15."""
        return max(14 * 4 + self.kernel_sizes[0] - 2 * self.conv1_padding, 1)

    def check_fields(self) -> None:
        """Checks that there are five values for the five convolutions, and that the groups divide the channels."""
        super().check_fields()
        self.check_positive("widths", "kernel_sizes", "groups", "hidden")
        for field in ("widths", "kernel_sizes", "groups", "relu_after"):
            if len(getattr(self, field)) != 5:
                raise UserError(
                    f"{field} of AlexNet takes five values, one a convolution, got {getattr(self, field)}"
                )
        if self.groups[0] != 1:
            raise UserError(f"conv1 of AlexNet has one group, got {self.groups[0]}")
        for index, groups in enumerate(self.groups[1:]):
            if self.widths[index] % groups or self.widths[index + 1] % groups:
                raise UserError(f"{groups} groups do not divide the channels around conv{index + 2} of AlexNet")

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps conv1, pool1, pool2, pool5 and the logits."""
        maps = {}
        maps["conv1"] = self._convolve(1, images, train, stride=4, padding=self.conv1_padding)
        maps["pool1"] = max_pool(self._normalize(maps["conv1"]), 3, 2)
        x = self._convolve(2, maps["pool1"], train)
        maps["pool2"] = max_pool(self._normalize(x), 3, 2)
        x = self._convolve(3, maps["pool2"], train)
        x = self._convolve(4, x, train)
        x = self._convolve(5, x, train)
        x = maps["pool5"] = max_pool(x, 3, 2)
        if self.pooled_size:
            x = adaptive_average_pool(x, (self.pooled_size, self.pooled_size))
        x = layers.flatten(x)
        for name in ("fc6", "fc7"):
            if not self.dropout_after:
                x = layers.dropout(x, self.dropout_rate, train)
            x = nn.relu(self.dense(self.hidden, self._initializer(bias=1.0), name=name)(x))
            if self.dropout_after:
                x = layers.dropout(x, self.dropout_rate, train)
        return maps, self.classify(x, self._initializer(bias=0.0))

    def _convolve(self, number: int, x: Array, train: bool, **geometry: int) -> Array:
        """Applies convolution `number`, from 1 to 5, with its ReLU and its norm."""
        index = number - 1
        x = self.conv_norm(train, norm=None)(
            self.widths[index],
            self.kernel_sizes[index],
            groups=self.groups[index],
            activation=nn.relu if self.relu_after[index] else None,
            initializer=self._initializer(bias=1.0 if number in (2, 4, 5) else 0.0),
            name=f"conv{number}",
            **geometry,
        )(x)
        norm = self.bound_norm(train)
        return x if norm is None else norm(name=f"norm{number}")(x)

    def _normalize(self, x: Array) -> Array:
        return local_response_norm(x) if self.local_response_norm else x

    def _initializer(self, bias: float) -> initializers.LayerInitializer:
        return initializers.gaussian(0.01, bias) if self.paper_initialization else initializers.TORCH


_PAPER = "Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012"
_ONE_TOWER = {"widths": (96, 256, 384, 384, 256), "conv1_padding": 0, "pooled_size": 0, "dropout_after": True}
_SHAPE = (224, 224, 3)

register(
    "alexnet",
    AlexNet,
    summary="single tower of torchvision: 64-192-384-256-256, no normalization, dropout before fc6 and fc7",
    paper="Krizhevsky: One weird trick for parallelizing convolutional neural networks, 2014",
    input_shape=_SHAPE,
)
register(
    "alexnet_2012",
    AlexNet,
    fields={
        **_ONE_TOWER,
        "groups": (1, 2, 1, 2, 2),
        "conv1_padding": 2,
        "local_response_norm": True,
        "paper_initialization": True,
    },
    reported="40.7 / 18.2 % top-1 / top-5 error on ImageNet's validation set, ten crops",
    summary="as published: two groups in conv2, 4, 5, local response normalization, the paper's initialization",
    paper=_PAPER,
    input_shape=_SHAPE,
)
register(
    "alexnet_lrn",
    AlexNet,
    fields={**_ONE_TOWER, "local_response_norm": True},
    summary="one tower 96-256-384-384-256, conv1 without padding, local response normalization",
    paper=_PAPER,
    input_shape=_SHAPE,
)
register(
    "alexnet_d2l",
    AlexNet,
    fields={**_ONE_TOWER, "conv1_padding": 1},
    summary="one tower of d2l.ai: conv1 padded by 1, no normalization",
    paper=_PAPER,
    input_shape=(224, 224, 1),
    num_classes=10,
)
register(
    "alexnet_k5",
    AlexNet,
    fields={**_ONE_TOWER, "kernel_sizes": (11, 5, 5, 5, 5), "relu_after": (True, True, False, False, True)},
    summary="one tower with 5x5 kernels in conv3 to 5 and no ReLU between them",
    paper=_PAPER,
    input_shape=_SHAPE,
)
register(
    "alexnet_bn",
    AlexNet,
    fields={**_ONE_TOWER, "norm": BatchNorm},
    summary="one tower with BatchNorm after each convolution's ReLU, conv1 without padding",
    paper=_PAPER,
    input_shape=_SHAPE,
    num_classes=10,
)
