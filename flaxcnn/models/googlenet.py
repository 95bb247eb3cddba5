"""GoogLeNet: stacked Inception modules, as published and as in torchvision.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: "Going Deeper with Convolutions", CVPR
2015, table 1 and figures 2b and 3. torchvision's network differs from the paper: it has BatchNorm instead of biases
and local response normalization, 3x3 kernels instead of 5x5 in the third branch (a known mistake that its weights
depend on), and a 2x2 window in the last max pooling.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.batch_norm import BatchNorm
from flaxcnn.models.layers import Array, ConvNorm, Layer, Norm, Pooling
from flaxcnn.models.network import Network
from flaxcnn.models.published import MEAN, STD
from flaxcnn.models.registry import register
from flaxcnn.ops import adaptive_average_pool, average_pool, global_average_pool, local_response_norm, max_pool


class Inception(nn.Module):
    """Inception module: four parallel branches, concatenated along the channels (figure 2b of the paper).

    Attributes:
      c1: output channels of the first branch, a 1x1 convolution.
      c2: output channels of the 1x1 and the 3x3 convolution of the second branch.
      c3: output channels of the 1x1 and the 5x5 convolution of the third branch.
      c4: output channels of the fourth branch, 3x3 max pooling and a 1x1 convolution.
      kernel_size: kernel size of the third branch, 5 in the paper and 3 in torchvision's network.
      conv: constructor of the convolutions.
    """

    c1: int
    c2: tuple[int, int]
    c3: tuple[int, int]
    c4: int
    kernel_size: int = 5
    conv: Layer = ConvNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to (B, H, W, c1 + c2[1] + c3[1] + c4)."""
        branch1 = self.conv(self.c1, 1, name="branch1")(x)
        branch2 = self.conv(self.c2[0], 1, name="branch2_reduce")(x)
        branch2 = self.conv(self.c2[1], 3, name="branch2")(branch2)
        branch3 = self.conv(self.c3[0], 1, name="branch3_reduce")(x)
        branch3 = self.conv(self.c3[1], self.kernel_size, name="branch3")(branch3)
        branch4 = self.conv(self.c4, 1, name="branch4")(max_pool(x, 3, 1, padding=1))
        return jnp.concatenate([branch1, branch2, branch3, branch4], axis=-1)


# Table 1 of the paper, with its column names: #1x1, (#3x3 reduce, #3x3), (#5x5 reduce, #5x5), pool proj.
INCEPTIONS = {
    "inception3a": (64, (96, 128), (16, 32), 32),
    "inception3b": (128, (128, 192), (32, 96), 64),
    "inception4a": (192, (96, 208), (16, 48), 64),
    "inception4b": (160, (112, 224), (24, 64), 64),
    "inception4c": (128, (128, 256), (24, 64), 64),
    "inception4d": (112, (144, 288), (32, 64), 64),
    "inception4e": (256, (160, 320), (32, 128), 128),
    "inception5a": (256, (160, 320), (32, 128), 128),
    "inception5b": (384, (192, 384), (48, 128), 128),
}


class AuxiliaryHead(nn.Module):
    """The paper's auxiliary classifier: pooling, a 1x1 convolution, two dense layers with dropout between them.

    Attributes:
      pool: pooling function that reduces the feature map to about 4x4 pixels.
      num_classes: number of classes.
      dropout_rate: probability of dropout between the dense layers.
      conv: constructor of the convolution.
      dense: constructor of the dense layers.
      initializer: initializer of the first dense layer.
      head_initializer: initializer of the second dense layer, the classifier.
      train: whether dropout is active.
    """

    pool: Pooling
    num_classes: int
    dropout_rate: float
    conv: Layer
    dense: Layer
    initializer: initializers.LayerInitializer
    head_initializer: initializers.LayerInitializer
    train: bool

    training_only = True  # `cost.measure` leaves it out, because it counts the multiply-adds of inference

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to logits (B, num_classes)."""
        x = layers.flatten(self.conv(128, 1, name="conv")(self.pool(x)))
        x = layers.dropout(nn.relu(self.dense(1024, self.initializer, name="fc")(x)), self.dropout_rate, self.train)
        return self.dense(self.num_classes, self.head_initializer, name="head")(x)


class GoogLeNet(Network):
    """A stem, nine Inception modules, and global average pooling.

    With `aux_logits` there are two auxiliary classifiers, on inception4a and inception4d. In training their logits
    are sown into the collection `aux_logits`, in order of depth, if it is mutable. The training loss adds 0.3 times
    the loss of each.

    Kernels are initialized as in torchvision (normal with standard deviation 0.01), and biases as in torch. With
    `paper`, parameters are initialized as in Caffe's release, because the paper gives no initialization: kernels
    uniform by fan-in; biases 0.2, but 0 in classifiers.

    Attributes:
      paper: whether the network has the paper's 5x5 kernels, local response normalization and 3x3 last max pooling,
        instead of torchvision's layers.
      aux_logits: whether the network has the auxiliary classifiers.
      transform_input: whether images normalized by ImageNet's mean and standard deviation are first mapped to
        [-1, 1], the range that torchvision's weights were trained with; requires three channels.
      norm: constructor of the norm after each convolution, or None.
      dropout_rate: probability of dropout before the classifier.
      aux_dropout_rate: probability of dropout between the dense layers of an auxiliary classifier.
    """

    paper: bool = False
    aux_logits: bool = False
    transform_input: bool = False
    norm: Norm | None = functools.partial(BatchNorm, epsilon=1e-3)
    bn_axis_name: str | None = None
    dropout_rate: float = 0.2
    aux_dropout_rate: float = 0.7
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """Minimum height and width of the images at which the last max pooling has a window."""
        return 31 if self.paper else 15

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the feature maps of the pooling layers, conv3 and all Inception modules, and the logits."""
        initializer = initializers.CAFFE if self.paper else initializers.NORMAL_001_TORCH_BIAS
        head_initializer = initializers.CAFFE_HEAD if self.paper else initializer
        conv = self.conv_norm(train, initializer=initializer)
        x = _to_unit_range(images) if self.transform_input else images
        maps = {}

        x = conv(64, 7, stride=2, name="conv1")(x)
        x = maps["pool1"] = max_pool(x, 3, 2, ceil_mode=True)
        if self.paper:
            x = local_response_norm(x)
        x = conv(64, 1, name="conv2")(x)
        x = maps["conv3"] = conv(192, 3, name="conv3")(x)
        if self.paper:
            x = local_response_norm(x)
        x = maps["pool2"] = max_pool(x, 3, 2, ceil_mode=True)
        for name, channels in INCEPTIONS.items():
            if name == "inception4a":
                x = maps["pool3"] = max_pool(x, 3, 2, ceil_mode=True)
            if name == "inception5a":
                x = maps["pool4"] = max_pool(x, 3 if self.paper else 2, 2, ceil_mode=True)
            block = Inception(*channels, 5 if self.paper else 3, conv, name=name)
            x = maps[name] = self.run_block(block, x)

        if self.aux_logits and self.num_classes and (train or self.is_initializing()):
            pool = _pool_5x5 if self.paper else functools.partial(adaptive_average_pool, output_size=(4, 4))
            for name, stage in (("aux1", "inception4a"), ("aux2", "inception4d")):
                logits = AuxiliaryHead(
                    pool=pool,
                    num_classes=self.num_classes,
                    dropout_rate=self.aux_dropout_rate,
                    conv=conv,
                    dense=self.dense,
                    initializer=initializer,
                    head_initializer=head_initializer,
                    train=train,
                    name=name,
                )(maps[stage])
                if not self.is_initializing():
                    self.sow("aux_logits", f"{name}_logits", logits)
        x = layers.dropout(global_average_pool(x), self.dropout_rate, train)
        return maps, self.classify(x, head_initializer)


def _pool_5x5(x: Array) -> Array:
    """Applies the auxiliary classifiers' 5x5/3 average pooling, with smaller windows on smaller feature maps."""
    return average_pool(x, min(5, *x.shape[1:3]), 3)


def _to_unit_range(images: Array) -> Array:
    """Maps pixels normalized by ImageNet's mean and standard deviation to [-1, 1]."""
    if images.shape[-1] != 3:
        raise UserError(f"transform_input of GoogLeNet needs images of 3 channels, got {images.shape[-1]}")
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    std, mean = (layers.by_channel(jnp.asarray(values, dtype)) for values in (STD, MEAN))
    return (images.astype(dtype) * std + mean) * 2 - 1


_PAPER = "Szegedy et al.: Going Deeper with Convolutions, 2015"

register(
    "googlenet",
    GoogLeNet,
    summary="torchvision's: BatchNorm, 3x3 kernels in the branch of the paper's 5x5",
    paper=_PAPER,
    input_shape=(224, 224, 3),
)
register(
    "googlenet_paper",
    GoogLeNet,
    fields={"paper": True, "norm": None, "dropout_rate": 0.4},
    reported="10.07 % top-5 error on ImageNet's validation set, one crop",
    summary="as published: biases, 5x5 kernels, local response normalization",
    paper=_PAPER,
    input_shape=(224, 224, 3),
)
