"""Error messages for images or variables that do not fit a network."""

import contextlib
from collections.abc import Iterator

import flax.errors

from flaxcnn.errors import UserError, first_line


@contextlib.contextmanager
def mismatch_as_user_error(shape: tuple[int, ...]) -> Iterator[None]:
    """Context manager that re-raises Flax's errors for variables that do not fit as a `UserError` of one line.

    Args:
      shape: shape (N, H, W, C) of the images, for the message.
    """
    try:
        yield
    except (
        flax.errors.ScopeParamShapeError,
        flax.errors.ScopeParamNotFoundError,
        flax.errors.ScopeCollectionNotFound,
    ) as error:
        size = "x".join(map(str, shape[1:]))
        raise UserError(f"the variables do not fit the model and images of {size}: {first_line(error)}") from None
