"""VGG: blocks of 3x3 convolutions, each closed by a max pooling.

Simonyan, Zisserman: "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1,
configurations A, B, D and E. What differs from the paper: the last map is pooled adaptively to 7x7, so that images
of any size fit, and the weights start from torchvision's distributions instead of from a shallower trained network.
The `_bn` forms are torchvision's, whose convolutions keep their biases beside BatchNorm.
"""

import functools

import flax.linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array
from flaxcnn.models.registry import register
from flaxcnn.ops.pooling import adaptive_average_pool, max_pool


class VGG(layers.Network):
    """Blocks of (convolutions, channels), then three dense layers; with `num_classes=0` it ends in fc7.

    Attributes:
      blocks: for each block the number of 3x3 convolutions and their channels; a 2x2 max pooling closes it.
      norm: constructor of a norm between each convolution and its ReLU, or None.
      pooled_size: height and width to which the last map is pooled adaptively.
      hidden: width of fc6 and fc7.
      dropout_rate: after fc6 and fc7.
      remat: whether each block is computed again in the backward pass instead of being kept: less memory (but not
        on CPUs, where XLA undoes it), about a third more work; changes no value.
    """

    blocks: tuple[tuple[int, ...], ...] = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
    norm: layers.Norm | None = None
    bn_axis_name: str | None = None
    pooled_size: int = 7
    hidden: int = 4096
    dropout_rate: float = 0.5
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """Each block halves the size."""
        return 2 ** len(self.blocks)

    def check_fields(self) -> None:
        """Two numbers a block."""
        super().check_fields()
        self.check_positive("blocks", "hidden", "pooled_size")
        if not self.blocks or any(len(block) != 2 for block in self.blocks):
            raise UserError(f"blocks of VGG takes pairs of (convolutions, channels), got {self.blocks}")

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the maps after each pooling, stage1 and so on, and the logits."""
        conv, maps, x = self.conv_norm(train, use_bias=True), {}, images
        for number in range(1, len(self.blocks) + 1):
            block = functools.partial(VGG._block, number=number, conv=conv)
            x = maps[f"stage{number}"] = self.run_block(self, x, block)
        x = layers.flatten(adaptive_average_pool(x, (self.pooled_size, self.pooled_size)))
        scheme = initializers.gaussian(0.01)
        for name in ("fc6", "fc7"):
            x = nn.relu(self.dense(self.hidden, scheme, name=name)(x))
            x = layers.dropout(x, self.dropout_rate, train)
        return maps, self.classify(x, scheme)

    def _block(self, x: Array, number: int, conv: layers.Layer) -> Array:
        """Applies a block; a method and no module, because its convolutions are the network's own by name."""
        convolutions, channels = self.blocks[number - 1]
        for index in range(1, convolutions + 1):
            x = conv(channels, name=f"stage{number}_conv{index}")(x)
        return max_pool(x, 2, 2)


# Convolutions a block; the channels are 64, 128, 256, 512, 512 in all.
_DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_CONFIGURATION = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}

for _name, _depths in _DEPTHS.items():
    for _suffix, _norm in (("", None), ("_bn", layers.BatchNorm)):
        register(
            _name + _suffix,
            VGG,
            fields={"blocks": tuple(zip(_depths, (64, 128, 256, 512, 512), strict=True)), "norm": _norm},
            summary=f"configuration {_CONFIGURATION[_name]}"
            + (", BatchNorm after each convolution" if _norm else ""),
            paper="Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015",
            input_shape=(224, 224, 3),
        )
