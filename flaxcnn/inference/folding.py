"""Folding of BatchNorm into the preceding convolution, for inference.

With running statistics, a convolution W x followed by BatchNorm, scale (W x - mean) / sqrt(variance + epsilon) +
bias, equals one convolution with different weights and a bias (Jacob et al.: "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2).
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from flaxcnn.errors import UserError
from flaxcnn.models import initializers, layers
from flaxcnn.models.layers import Array, Dtype
from flaxcnn.models.network import Network

Variables = Mapping[str, Any]


class FoldedNorm(nn.Module):
    """Replaces a BatchNorm after folding: multiplies by a scale and adds a bias, only adds a bias, or does nothing.

    The module path determines which of the three it does.

    Attributes:
      scaled: paths of norms that could not be folded. They have parameters `scale` and `bias`, one value per
        channel.
      shifted: paths of norms that were folded into a layer without bias. They have a parameter `bias`, which serves
        as the bias of that layer.
      scale_init: initializer of the scale.
      dtype: dtype of the result.
      param_dtype: dtype of the parameters.
    """

    scaled: frozenset[str] = frozenset()
    shifted: frozenset[str] = frozenset()
    scale_init: initializers.Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (..., C) to the same shape."""
        path, shape, last = "/".join(self.path), x.shape[-1:], (1,) * (x.ndim - 1) + (-1,)
        if path in self.scaled:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
            bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            # As in BatchNorm, half precision is promoted to float32 for the multiplication and the addition.
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * scale.reshape(last) + bias.reshape(last)
        elif path in self.shifted:
            bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            x, bias = promote_dtype(x, bias, dtype=self.dtype)
            x = x + bias.reshape(last)
        return x.astype(self.dtype)


@dataclasses.dataclass
class _Norm:
    """A BatchNorm of a network.

    Attributes:
      epsilon: constant that is added to the variance.
      layer: path of the layer whose output is used by this norm only; None if there is no such layer.
    """

    epsilon: float
    layer: str | None = None


def fold_batch_norm(model: Network, variables: Variables) -> tuple[Network, Variables]:
    """Returns an equivalent network without BatchNorm for inference, and its variables.

    If the output of a convolution or dense layer is used only by a BatchNorm, the BatchNorm is folded into the
    layer. The kernel is scaled, and the remaining bias is added to the bias of the layer. If the layer has no bias,
    the remaining bias becomes a parameter with the path of the norm. Every other BatchNorm, such as the first one
    of a pre-activation block, becomes a scale and a bias per channel.

    The returned network has the same class, the same fields except `norm`, and the same feature maps with
    `train=False`. With `train=True` dropout is active, but nothing is normalized. Its variables have no
    `batch_stats`. Norms of other types are kept. A network without BatchNorm is returned unchanged.

    Args:
      model: a network of this package.
      variables: variables of the model. New values are computed in float64, and rounded to the dtype of the values
        that they replace.

    Raises:
      UserError: variables of the model are missing.
    """
    norms = _find_norms(model)
    if not norms:
        return model, variables
    params, stats = (_flat(variables.get(kind, {})) for kind in ("params", "batch_stats"))

    def take(leaves: dict[str, Array], path: str) -> Array:
        if path not in leaves:
            raise UserError(f"the variables do not fit the model: they have no {path}")
        return leaves.pop(path)

    scaled, shifted = set(), set()
    for path, norm in norms.items():
        mean, variance = take(stats, f"{path}/mean"), take(stats, f"{path}/var")
        scale, bias = params.pop(f"{path}/scale", None), params.pop(f"{path}/bias", None)
        dtype = next(leaf.dtype for leaf in (scale, bias, mean) if leaf is not None)
        factor = (1 if scale is None else _float64(scale)) / np.sqrt(_float64(variance) + norm.epsilon)
        shift = (0 if bias is None else _float64(bias)) - _float64(mean) * factor
        if norm.layer is None:
            scaled.add(path)
            params[f"{path}/scale"] = jnp.asarray(factor, dtype)
            params[f"{path}/bias"] = jnp.asarray(shift, dtype)
            continue
        kernel = take(params, f"{norm.layer}/kernel")
        params[f"{norm.layer}/kernel"] = jnp.asarray(_float64(kernel) * factor, kernel.dtype)
        layer_bias = params.get(f"{norm.layer}/bias")
        if layer_bias is not None:
            params[f"{norm.layer}/bias"] = jnp.asarray(_float64(layer_bias) * factor + shift, layer_bias.dtype)
        else:
            shifted.add(path)
            params[f"{path}/bias"] = jnp.asarray(shift, dtype)
    own = getattr(model.norm, "keywords", {})
    dtypes = {field: own[field] for field in ("dtype", "param_dtype") if field in own}
    norm = functools.partial(FoldedNorm, scaled=frozenset(scaled), shifted=frozenset(shifted), **dtypes)
    others = {kind: leaves for kind, leaves in variables.items() if kind not in ("params", "batch_stats")}
    return model.clone(norm=norm), {"params": unflatten_dict(params, sep="/"), **others}


def _flat(collection: Mapping[str, Any]) -> dict[str, Array]:
    flat: dict[str, Any] = flatten_dict(collection, sep="/")
    return flat


def _float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)


def _find_norms(model: Network) -> dict[str, _Norm]:
    """Returns the BatchNorms of a network, keyed by path.

    They are found in a trace of the network's initialization, which calls every layer.
    """
    if hasattr(model, "remat"):
        model = model.clone(remat=False)  # with `remat`, each block would be a separate jaxpr within the trace
    norms: dict[str, _Norm] = {}

    def mark(call, args, kwargs, context):
        module, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, nn.BatchNorm):
            norms[path] = _Norm(module.epsilon)
            return call(checkpoint_name(args[0], path), *args[1:], **kwargs)
        result = call(*args, **kwargs)
        return checkpoint_name(result, path) if isinstance(module, (nn.Conv, layers.Dense)) else result

    def forward(images: Array) -> Any:
        return model.init_with_output(jax.random.key(0), images, False, method="forward")[0]

    size = max(model.minimum_size, 32)
    with nn.intercept_methods(mark):
        jaxpr = jax.make_jaxpr(forward)(jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)).jaxpr
    # Outputs of the network count as uses, too.
    uses = collections.Counter(
        id(variable) for variables in (*(e.invars for e in jaxpr.eqns), jaxpr.outvars) for variable in variables
    )
    outputs = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name != "name":
            continue
        path, (source,), (result,) = equation.params["name"], equation.invars, equation.outvars
        if path not in norms:
            outputs[id(result)] = path
        elif uses[id(source)] == 1:
            norms[path].layer = outputs.get(id(source))
    return norms
