"""Network in Network: convolutions followed by 1x1 convolutions, global average pooling, and no dense layers.

Lin, Chen, Yan: "Network In Network", ICLR 2014. All pooling between blocks is max pooling, as in the paper's text.
In the CIFAR network that the authors released, the second one is average pooling.
"""

from typing import Literal

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array, Layer
from flaxcnn.models.network import Network
from flaxcnn.models.registry import register
from flaxcnn.ops import global_average_pool, max_pool


class NiNBlock(nn.Module):
    """The paper's mlpconv layer (figure 1b): a convolution and two 1x1 convolutions, each followed by a ReLU."""

    features: tuple[int, int, int]
    kernel_size: int
    conv: Layer
    stride: int = 1
    padding: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H', W', features[-1])."""
        x = self.conv(self.features[0], self.kernel_size, stride=self.stride, padding=self.padding, name="conv1")(x)
        x = self.conv(self.features[1], 1, name="conv2")(x)
        return self.conv(self.features[2], 1, name="conv3")(x)


class NiN(Network):
    """Blocks, each followed by 3x3/2 max pooling; a last block with a channel per class; global average pooling.

    The defaults give d2l.ai's network (section 8.3), whose convolutions are like AlexNet's. With `num_classes=0`
    the last block is left out, and the output is the mean over the pixels of the feature map before it.

    Attributes:
      blocks: (kernel size, stride, padding, channels, channels, channels) of each block but the last, with the
        output channels of its three convolutions.
      head_features: output channels of the first two convolutions of the last block, or 0 for `num_classes`.
      ceil_mode: whether pooling windows may extend past the end of the feature map, as in the authors' network.
      dropout_rate: probability of dropout before the last block or, with `dropout_everywhere`, after every pooling.
      initialization: initializer of every convolution: "glorot", as in d2l.ai, or "normal" with standard deviation
        0.05, as in Caffe's port of the CIFAR network.
    """

    blocks: tuple[tuple[int, ...], ...] = (
        (11, 4, 0, 96, 96, 96),
        (5, 1, 2, 256, 256, 256),
        (3, 1, 1, 384, 384, 384),
    )
    head_features: int = 0
    ceil_mode: bool = False
    dropout_rate: float = 0.5
    dropout_everywhere: bool = False
    initialization: Literal["glorot", "normal"] = "glorot"
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images at which every pooling has a window."""
        size = 1
        for kernel_size, stride, padding, *_ in reversed(self.blocks):
            size = 2 * size if self.ceil_mode else 2 * size + 1
            size = max((size - 1) * stride + kernel_size - 2 * padding, 1)
        return size

    def check_fields(self) -> None:
        """Checks that each block has six numbers in range."""
        super().check_fields()
        if not self.blocks or any(len(block) != 6 for block in self.blocks):
            raise UserError(
                f"blocks of NiN takes (kernel size, stride, padding, three channels) for each, got {self.blocks}"
            )
        for kernel_size, stride, padding, *channels in self.blocks:
            if min(kernel_size, stride, *channels) < 1 or padding < 0:
                raise UserError(f"blocks of NiN has a number that is too small: {self.blocks}")

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps after each pooling, "pool1", "pool2", ..., and the logits."""
        initializer = initializers.GLOROT if self.initialization == "glorot" else initializers.gaussian(0.05)
        conv, maps, x = self.conv_norm(train, initializer=initializer), {}, images
        for number, (kernel_size, stride, padding, first, second, third) in enumerate(self.blocks, start=1):
            block = NiNBlock((first, second, third), kernel_size, conv, stride, padding, name=f"block{number}")
            x = self.run_block(block, x)
            x = maps[f"pool{number}"] = max_pool(x, 3, 2, ceil_mode=self.ceil_mode)
            if self.dropout_everywhere or number == len(self.blocks):
                x = layers.dropout(x, self.dropout_rate, train)
        if self.num_classes:
            hidden = self.head_features or self.num_classes
            x = self.run_block(NiNBlock((hidden, hidden, self.num_classes), 3, conv, name="head"), x)
        return maps, global_average_pool(x)


_PAPER = "Lin, Chen, Yan: Network In Network, 2014"

register(
    "nin",
    NiN,
    summary="d2l.ai's: blocks 96@11/4, 256@5, 384@3 and classes@3, starting like AlexNet",
    paper=_PAPER,
    input_shape=(224, 224, 1),
    num_classes=10,
)
register(
    "nin_cifar",
    NiN,
    fields={
        "blocks": ((5, 1, 2, 192, 160, 96), (5, 1, 2, 192, 192, 192)),
        "head_features": 192,
        "ceil_mode": True,
        "dropout_everywhere": True,
        "initialization": "normal",
    },
    reported="10.41 % error on CIFAR-10, 8.81 % with augmentation",
    summary="the paper's for CIFAR: 192-160-96@5, 192-192-192@5, 192-192-classes@3",
    paper=_PAPER,
    input_shape=(32, 32, 3),
    num_classes=10,
)
