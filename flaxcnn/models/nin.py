"""Network in Network: convolutions followed by 1x1 convolutions, and averaging instead of dense layers.

Lin, Chen, Yan: "Network In Network", ICLR 2014. Every pooling takes the maximum, as the paper's text has it; the
network that its authors released for CIFAR averages in the second.
"""

from typing import Literal

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array
from flaxcnn.models.registry import register
from flaxcnn.ops.pooling import global_average_pool, max_pool


class NiNBlock(nn.Module):
    """The paper's mlpconv layer (figure 1b): a convolution and two 1x1 convolutions, each with a ReLU."""

    features: tuple[int, int, int]
    kernel_size: int
    conv: layers.Layer
    stride: int = 1
    padding: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H', W', features[-1])."""
        x = self.conv(self.features[0], self.kernel_size, stride=self.stride, padding=self.padding, name="conv1")(x)
        x = self.conv(self.features[1], 1, name="conv2")(x)
        return self.conv(self.features[2], 1, name="conv3")(x)


class NiN(layers.Network):
    """Blocks, each closed by 3x3/2 max pooling, a last block with a map a class, and the mean over that map.

    The defaults are d2l.ai's network (section 8.3), which starts like AlexNet. With `num_classes=0` the last block
    is left out and the map before it is averaged.

    Attributes:
      blocks: for each block its kernel size, stride, padding and the channels of its three convolutions.
      head_features: channels of the last block's convolutions but the last, or 0 for one a class.
      ceil_mode: whether the pooling windows may hang over the end, as in the authors' implementation.
      dropout_rate: before the last block, and after every pooling with `dropout_everywhere`.
      initialization: of every convolution: "glorot", as in d2l.ai, or "normal" of deviation 0.05, which Caffe's
        port of the CIFAR network has.
      remat: whether each block is computed again in the backward pass instead of being kept: less memory (but not
        on CPUs, where XLA undoes it), about a third more work; changes no value.
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
        """The least size from which every pooling has a window."""
        size = 1
        for kernel_size, stride, padding, *_ in reversed(self.blocks):
            size = 2 * size if self.ceil_mode else 2 * size + 1
            size = max((size - 1) * stride + kernel_size - 2 * padding, 1)
        return size

    def check_fields(self) -> None:
        """Six numbers a block."""
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
        """Returns the maps after each pooling, pool1 and so on, and the logits."""
        scheme = initializers.GLOROT if self.initialization == "glorot" else initializers.gaussian(0.05)
        conv, maps, x = self.conv_norm(train, scheme=scheme), {}, images
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
