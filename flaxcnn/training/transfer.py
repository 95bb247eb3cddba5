"""Training parts of a network: layers chosen by pattern, frozen or with a learning rate of their own."""

import fnmatch
from typing import Any

import jax
import optax

from flaxcnn.errors import UserError, nearest


def select(params: Any, *patterns: str) -> Any:
    """Returns an optax mask: True for each parameter of the layers that match one of the patterns.

    Args:
      params: of a network.
      *patterns: shell wildcards for the paths of layers or parameters, such as "stem", "stage[12]_*" or "*/bias".
        A pattern that matches a layer means all within it. The classifier of every network is "head".

    Returns:
      A tree of bools like `params`.

    Raises:
      UserError: a pattern matches nothing.
    """
    paths = jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(key.key for key in path), params, is_leaf=_is_masked
    )
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in jax.tree.leaves(paths, is_leaf=_is_path)):
            raise UserError(f"no layer matches {pattern!r}{nearest(pattern, params)}")
    return jax.tree.map(lambda path: any(_matches(path, pattern) for pattern in patterns), paths, is_leaf=_is_path)


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """Returns an optimizer that leaves the matching parameters as they are, weight decay included.

    It keeps no state for them. Running statistics are no parameters: those of frozen layers still follow the
    batches unless the network is called with `train=False`.

    Args:
      optimizer: for all other parameters.
      *patterns: as in `select`.
    """

    def labels(params):
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", select(params, *patterns))

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def scale_learning_rate(
    optimizer: optax.GradientTransformation, factor: float, *patterns: str
) -> optax.GradientTransformation:
    """Returns an optimizer whose learning rate is `factor` times as large for the matching parameters.

    Args:
      optimizer: whose updates are proportional to its learning rate, as those of SGD and Adam are.
      factor: such as 10 for a new classifier on a trained network: `scale_learning_rate(optimizer, 10, "head")`.
      *patterns: as in `select`.
    """
    return optax.chain(optimizer, optax.masked(optax.scale(factor), lambda params: select(params, *patterns)))


def _is_masked(node: Any) -> bool:
    # Around a part of an optimizer optax leaves these in the place of the parameters that it does not see.
    return isinstance(node, optax.MaskedNode)


def _is_path(node: Any) -> bool:
    return isinstance(node, tuple)


def _matches(path: tuple[str, ...], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase("/".join(path[:length]), pattern) for length in range(1, len(path) + 1))
