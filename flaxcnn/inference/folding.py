"""BatchNorm as inference needs it: a linear map with fixed numbers, made part of the convolution before it.

With running statistics, scale (W x - mean) / sqrt(variance + epsilon) + offset is a convolution with other weights
and a bias (Jacob et al.: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, section 3.2).
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
from flaxcnn.models.layers import Array, Dtype, Network

Variables = Mapping[str, Any]


class FoldedNorm(nn.Module):
    """What stays where a BatchNorm was: a scale and an offset a channel, an offset alone, or nothing.

    Attributes:
      scaled: paths of the norms that no convolution could take in: parameters `scale` and `bias`.
      shifted: paths of those whose scale went into a convolution without a bias; the parameter `bias` is that bias.
      scale_init: the start of the scale.
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
            # As in BatchNorm, numbers of half precision are widened for the product and the sum.
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * scale.reshape(last) + bias.reshape(last)
        elif path in self.shifted:
            bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            x, bias = promote_dtype(x, bias, dtype=self.dtype)
            x = x + bias.reshape(last)
        return x.astype(self.dtype)


@dataclasses.dataclass
class _Norm:
    """A BatchNorm of a network: its epsilon, and the path of the layer whose output only it sees, or None."""

    epsilon: float
    layer: str | None = None


def fold_batch_norm(model: Network, variables: Variables) -> tuple[Network, Variables]:
    """Returns a network without BatchNorm, and its variables, that compute the same for `train=False`.

    A convolution or dense layer whose output goes into a BatchNorm, and nowhere else, takes it in: its kernel is
    scaled, and it gets a bias: its own, or, where it has none, one under the name of the norm. Every other
    BatchNorm, as before the first convolution of a pre-activation block, becomes a scale and an offset a channel.

    The result is a module of the same class and fields but for `norm`, with the same stage maps, for inference:
    with `train=True` it drops, but normalises nothing. It has no `batch_stats`. Other norms stay as they are, and
    a network without BatchNorm is returned unchanged.

    Args:
      model: a network of this package.
      variables: of the model. New values are computed in float64 and rounded to the dtype of those they replace.

    Raises:
      UserError: the variables lack what the model has.
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
        scale, offset = params.pop(f"{path}/scale", None), params.pop(f"{path}/bias", None)
        dtype = next(leaf.dtype for leaf in (scale, offset, mean) if leaf is not None)
        factor = (1 if scale is None else _wide(scale)) / np.sqrt(_wide(variance) + norm.epsilon)
        shift = (0 if offset is None else _wide(offset)) - _wide(mean) * factor
        if norm.layer is None:
            scaled.add(path)
            params[f"{path}/scale"] = jnp.asarray(factor, dtype)
            params[f"{path}/bias"] = jnp.asarray(shift, dtype)
            continue
        kernel = take(params, f"{norm.layer}/kernel")
        params[f"{norm.layer}/kernel"] = jnp.asarray(_wide(kernel) * factor, kernel.dtype)
        if (bias := params.get(f"{norm.layer}/bias")) is not None:
            params[f"{norm.layer}/bias"] = jnp.asarray(_wide(bias) * factor + shift, bias.dtype)
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


def _wide(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)


def _find_norms(model: Network) -> dict[str, _Norm]:
    """Returns the BatchNorms of a network by path, seen in a trace of its initialisation, which calls them all."""
    if hasattr(model, "remat"):
        model = model.clone(remat=False)  # would hide blocks in programs of their own
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
    # A stage map that is handed out is one more use.
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
