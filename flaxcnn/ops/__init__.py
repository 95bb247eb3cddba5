"""Convolution, pooling, matrix product and local response normalization, implemented for each platform.

Values and derivatives equal those of JAX's own operations up to rounding. Within `stock_operations()`, networks use
only JAX's own operations.

    convolution, dense, average_pooling, max_pooling, local_response_norm   the operations

    geometry             strides, paddings and groups of a convolution
    pooling_windows      paddings and windows of pooling
    multilinear          an operation that is linear in each argument, with its derivatives
    primitives           JAX primitives with an implementation for each platform
    vmap_rules           `vmap` of primitives
    varying_axes         arrays that differ between the devices of `shard_map`
    stock                `stock_operations`

    lax_convolution      convolution by JAX's operation
    onednn_convolution   convolution by oneDNN, and `onednn_dense` the matrix product
    onednn               calls of oneDNN from XLA; `onednn_program` and `onednn_library` belong to it
"""

from flaxcnn.ops.average_pooling import adaptive_average_pool, average_pool, global_average_pool
from flaxcnn.ops.convolution import convolution
from flaxcnn.ops.dense import dense
from flaxcnn.ops.local_response_norm import local_response_norm
from flaxcnn.ops.max_pooling import max_pool
from flaxcnn.ops.stock import stock_operations

__all__ = [
    "adaptive_average_pool",
    "average_pool",
    "convolution",
    "dense",
    "global_average_pool",
    "local_response_norm",
    "max_pool",
    "stock_operations",
]
