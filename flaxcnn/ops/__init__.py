"""Convolution, pooling, matrix product and local response normalization, implemented for each platform.

Values and derivatives equal those of JAX's own operations up to rounding. Within `stock_operations()`, networks use
only JAX's own operations.
"""

from flaxcnn.ops.average_pooling import adaptive_average_pool, average_pool, global_average_pool
from flaxcnn.ops.convolution import convolution
from flaxcnn.ops.dense import dense
from flaxcnn.ops.local_response_norm import local_response_norm
from flaxcnn.ops.max_pooling import max_pool
from flaxcnn.ops.primitives import stock_operations

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
