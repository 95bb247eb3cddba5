"""Independence of the mesh that the caller has set with `jax.set_mesh`."""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh


def without_mesh() -> contextlib.AbstractContextManager[Any]:
    """Returns a context manager that unsets the caller's mesh, for programs that choose their own devices."""
    return jax.set_mesh(Mesh(np.empty((), dtype=object), ()))
