"""A context within which networks use only JAX's own operations."""

from contextlib import AbstractContextManager

import jax

# A user context is part of the key of JAX's caches, so functions traced outside of the context are not reused
# inside.
_STOCK = jax.make_user_context(False)


def stock_operations() -> AbstractContextManager[None]:
    """Returns a context manager within which networks use only JAX's own operations, on every platform.

    It is meant for converters, which support only the primitives of `jax.lax`, and for comparisons. Values and
    derivatives are equal up to rounding, with one exception: if two values of a max pooling window are equal, JAX's
    forward mode picks a different one than its reverse mode, while `max_pool` picks the same one in both modes.

    Example:
      >>> with flaxcnn.ops.stock_operations():
      ...     jaxpr = jax.make_jaxpr(lambda x: model.apply(variables, x, train=False))(images)
    """
    return _STOCK(True)


def uses_stock() -> bool:
    """Returns whether the call happens within `stock_operations`."""
    return _STOCK.value
