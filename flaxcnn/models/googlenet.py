"""GoogLeNet: stacked Inception modules, as published and as torchvision ships it.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: "Going Deeper with Convolutions", CVPR
2015, table 1 and figures 2b and 3. torchvision's network has BatchNorm instead of biases and local response
normalisation, 3x3 kernels in the branch of the paper's 5x5 (a known slip that its weights depend on), and a 2x2
window in the last max pooling.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array
from flaxcnn.models.published import MEAN, STD
from flaxcnn.models.registry import register
from flaxcnn.ops.local_response_norm import local_response_norm
from flaxcnn.ops.pooling import adaptive_average_pool, average_pool, global_average_pool, max_pool


class Inception(nn.Module):
    """Figure 2b of the paper: four branches side by side, joined along the channels.

    Attributes:
      c1: channels of the 1x1 branch.
      c2: channels of the 1x1 reduction and of the 3x3 convolution.
      c3: channels of the 1x1 reduction and of the 5x5 convolution.
      c4: channels of the 1x1 convolution that follows a 3x3 max pooling.
      kernel_size: of the third branch, 5 in the paper and 3 in torchvision's network.
      conv: constructor of the convolutions.
    """

    c1: int
    c2: tuple[int, int]
    c3: tuple[int, int]
    c4: int
    kernel_size: int = 5
    conv: layers.Layer = layers.ConvNorm

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


# Table 1 of the paper: #1x1, (#3x3 reduce, #3x3), (#5x5 reduce, #5x5), pool proj.
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
    """The paper's side classifier: a pooled map, 1x1 convolution, two dense layers with dropout between.

    Attributes:
      pool: brings the map to about 4x4 pixels.
      num_classes: length of the logits.
      dropout_rate: between the dense layers.
      conv: constructor of the convolution.
      dense: constructor of the dense layers.
      scheme: the start of the first dense layer.
      head_scheme: the start of the second, the classifier.
      train: whether to drop.
    """

    pool: layers.Pooling
    num_classes: int
    dropout_rate: float
    conv: layers.Layer
    dense: layers.Layer
    scheme: initializers.Scheme
    head_scheme: initializers.Scheme
    train: bool

    training_only = True  # for the count of what inference costs

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, H, W, C) to logits (B, num_classes)."""
        x = layers.flatten(self.conv(128, 1, name="conv")(self.pool(x)))
        x = layers.dropout(nn.relu(self.dense(1024, self.scheme, name="fc")(x)), self.dropout_rate, self.train)
        return self.dense(self.num_classes, self.head_scheme, name="head")(x)


class GoogLeNet(layers.Network):
    """A stem, nine Inception modules, and the mean over the last map.

    With `aux_logits` there are two side classifiers, on inception4a and inception4d. In training their logits are
    sown into the collection `aux_logits`, in order of depth, where it is mutable; the loss adds 0.3 of each.

    Weights start as in torchvision (normal, 0.01; biases as in torch) or, in the paper's form, of which the paper
    says nothing, as in Caffe's release: uniform by fan-in, biases 0.2 and those of classifiers 0.

    Attributes:
      paper: the paper's 5x5 kernels, local response normalisation and 3x3 last max pooling, not torchvision's.
      aux_logits: whether the side classifiers exist.
      transform_input: whether images that were normalised by ImageNet's mean and deviation are first mapped to
        [-1, 1], for which torchvision's weights were trained; needs three channels.
      norm: constructor of the norm after each convolution, or None.
      dropout_rate: before the classifier.
      aux_dropout_rate: between the dense layers of a side classifier.
      remat: whether each Inception module is computed again in the backward pass instead of being kept: less memory
        (but not on CPUs, where XLA undoes it), about a third more work; changes no value.
    """

    paper: bool = False
    aux_logits: bool = False
    transform_input: bool = False
    norm: layers.Norm | None = functools.partial(layers.BatchNorm, epsilon=1e-3)
    bn_axis_name: str | None = None
    dropout_rate: float = 0.2
    aux_dropout_rate: float = 0.7
    remat: bool = False

    @property
    def minimum_size(self) -> int:
        """The least size from which the last max pooling has a window."""
        return 31 if self.paper else 15

    @nn.compact
    def forward(self, images: Array, train: bool) -> tuple[dict[str, Array], Array]:
        """Returns the maps of the poolings, of conv3 and of every Inception module, and the logits."""
        scheme = initializers.CAFFE if self.paper else initializers.NORMAL_001_TORCH_BIAS
        head_scheme = initializers.CAFFE_HEAD if self.paper else scheme
        conv = self.conv_norm(train, scheme=scheme)
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
                    scheme=scheme,
                    head_scheme=head_scheme,
                    train=train,
                    name=name,
                )(maps[stage])
                if not self.is_initializing():
                    self.sow("aux_logits", f"{name}_logits", logits)
        x = layers.dropout(global_average_pool(x), self.dropout_rate, train)
        return maps, self.classify(x, head_scheme)


def _pool_5x5(x: Array) -> Array:
    """The side classifiers' 5x5/3 average pooling, with windows no larger than the map."""
    return average_pool(x, min(5, *x.shape[1:3]), 3)


def _to_unit_range(images: Array) -> Array:
    """Undoes ImageNet's normalisation and maps pixels to [-1, 1]."""
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
    summary="as published: biases, 5x5 kernels, local response normalisation",
    paper=_PAPER,
    input_shape=(224, 224, 3),
)
