"""VGG: blocks of 3x3 convolutions, each followed by max pooling.

Simonyan, Zisserman: "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1,
configurations A, B, D and E. Differences from the paper: the last feature map is pooled adaptively to 7x7, so that
images of any size fit, and the weights are initialized as in torchvision and not from a shallower trained network.
The `_bn` variants are torchvision's, whose convolutions have biases in addition to BatchNorm.
"""

import functools

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.models.layers import Array, Layer, Norm
from flaxcnn.models.network import Network
from flaxcnn.models.registry import register
from flaxcnn.ops import adaptive_average_pool, max_pool


class VGG(Network):
    """Blocks of 3x3 convolutions and max pooling, then three dense layers.

    With `num_classes=0` the network returns the activations of fc7.

    Attributes:
      blocks: (number of 3x3 convolutions, channels) of each block; 2x2 max pooling ends the block.
      norm: constructor of the norm between each convolution and its ReLU, or None.
      pooled_size: height and width to which the last feature map is pooled adaptively.
      hidden: number of outputs of fc6 and of fc7.
      dropout_rate: probability of dropout after fc6 and fc7.
    """

    blocks: tuple[tuple[int, ...], ...] = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
    norm: Norm | None = None
    bn_axis_name: str | None = None
    pooled_size: int = 7
    hidden: int = 4096
    dropout_rate: float = 0.5
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images: each block halves the size."""
        return 2 ** len(self.blocks)

    def check_fields(self) -> None:
        """Checks that each block has two numbers, and that all numbers are positive."""
        super().check_fields()
        self.check_positive("blocks", "hidden", "pooled_size")
        if not self.blocks or any(len(block) != 2 for block in self.blocks):
            raise UserError(f"blocks of VGG takes pairs of (convolutions, channels), got {self.blocks}")

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps after each pooling, "stage1", "stage2", ..., and the logits."""
        conv, maps, x = self.conv_norm(train, use_bias=True), {}, images
        for number in range(1, len(self.blocks) + 1):
            block = functools.partial(VGG._block, number=number, conv=conv)
            x = maps[f"stage{number}"] = self.run_block(self, x, block)
        x = layers.flatten(adaptive_average_pool(x, (self.pooled_size, self.pooled_size)))
        initializer = initializers.gaussian(0.01)
        for name in ("fc6", "fc7"):
            x = nn.relu(self.dense(self.hidden, initializer, name=name)(x))
            x = layers.dropout(x, self.dropout_rate, train)
        return maps, self.classify(x, initializer)

    def _block(self, x: Array, number: int, conv: Layer) -> Array:
        """Applies a block. It is no module, so that its convolutions are submodules of the network."""
        convolutions, channels = self.blocks[number - 1]
        for index in range(1, convolutions + 1):
            x = conv(channels, name=f"stage{number}_conv{index}")(x)
        return max_pool(x, 2, 2)


def _vgg(name: str, summary: str, convolutions: tuple[int, int, int, int, int], norm: Norm | None = None) -> None:
    register(
        name,
        VGG,
        fields={"blocks": tuple(zip(convolutions, (64, 128, 256, 512, 512), strict=True)), "norm": norm},
        summary=summary,
        paper="Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015",
        input_shape=(224, 224, 3),
    )


_vgg("vgg11", "configuration A", (1, 1, 2, 2, 2))
_vgg("vgg13", "configuration B", (2, 2, 2, 2, 2))
_vgg("vgg16", "configuration D", (2, 2, 3, 3, 3))
_vgg("vgg19", "configuration E", (2, 2, 4, 4, 4))
_vgg("vgg11_bn", "configuration A, BatchNorm after each convolution", (1, 1, 2, 2, 2), BatchNorm)
_vgg("vgg13_bn", "configuration B, BatchNorm after each convolution", (2, 2, 2, 2, 2), BatchNorm)
_vgg("vgg16_bn", "configuration D, BatchNorm after each convolution", (2, 2, 3, 3, 3), BatchNorm)
_vgg("vgg19_bn", "configuration E, BatchNorm after each convolution", (2, 2, 4, 4, 4), BatchNorm)
