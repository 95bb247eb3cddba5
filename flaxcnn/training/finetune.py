"""Fine-tuning: freezing layers, or scaling their learning rate. Layers are selected by patterns of their names."""

import fnmatch
from typing import Any

import jax
import optax

from flaxcnn.errors import UserError, nearest


def select(params: Any, *patterns: str) -> Any:
    """Returns an optax mask that is True for the parameters of all layers that match one of the patterns.

    Args:
      params: parameters of a network.
      *patterns: shell patterns for paths of layers or parameters, such as "stem", "stage[12]_*" or "*/bias". A
        pattern that matches a layer selects all parameters of the layer. The classifier of every network is "head".

    Returns:
      A tree of bools with the structure of `params`.

    Raises:
      UserError: a pattern matches no layer and no parameter.
    """
    paths = jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(key.key for key in path), params, is_leaf=_is_masked
    )
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in jax.tree.leaves(paths, is_leaf=_is_path)):
            raise UserError(f"no layer matches {pattern!r}{nearest(pattern, params)}")
    return jax.tree.map(lambda path: any(_matches(path, pattern) for pattern in patterns), paths, is_leaf=_is_path)


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """Returns an optimizer that does not change parameters matching a pattern, not even by weight decay.

    The optimizer keeps no state for frozen parameters. Running statistics are not parameters: BatchNorm updates the
    running statistics of frozen layers, too, unless the network is called with `train=False`.

    Args:
      optimizer: optimizer of all other parameters.
      *patterns: patterns of the frozen parameters, as in `select`.
    """

    def labels(params):
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", select(params, *patterns))

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def scale_learning_rate(
    optimizer: optax.GradientTransformation, factor: float, *patterns: str
) -> optax.GradientTransformation:
    """Returns an optimizer that multiplies the learning rate of parameters matching a pattern by `factor`.

    Args:
      optimizer: an optimizer whose updates are proportional to its learning rate, such as SGD or Adam.
      factor: factor of the learning rate, such as 10 for a new classifier:
        `scale_learning_rate(optimizer, 10, "head")`.
      *patterns: patterns of the parameters, as in `select`.
    """
    return optax.chain(optimizer, optax.masked(optax.scale(factor), lambda params: select(params, *patterns)))


def _is_masked(node: Any) -> bool:
    # Optax replaces parameters by these nodes where a mask hides them from a transformation.
    return isinstance(node, optax.MaskedNode)


def _is_path(node: Any) -> bool:
    return isinstance(node, tuple)


def _matches(path: tuple[str, ...], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase("/".join(path[:length]), pattern) for length in range(1, len(path) + 1))
