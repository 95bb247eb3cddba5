"""Operations with exact semantics and derivatives, computed as each platform is quick at."""

from flaxcnn.ops.convolution import convolution
from flaxcnn.ops.local_response_norm import local_response_norm
from flaxcnn.ops.pooling import adaptive_average_pool, average_pool, global_average_pool, max_pool
from flaxcnn.ops.primitives import stock_operations

__all__ = [
    "adaptive_average_pool",
    "average_pool",
    "convolution",
    "global_average_pool",
    "local_response_norm",
    "max_pool",
    "stock_operations",
]
