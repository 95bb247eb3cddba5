"""Fine-tuning: freezing layers, or scaling their learning rate. Layers are selected by patterns of their names."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcnn.errors import UserError, nearest
from flaxcnn.models.cost import measure


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
        if not any(matches(path, [pattern]) for path in jax.tree.leaves(paths, is_leaf=_is_path)):
            raise UserError(f"no layer matches {pattern!r}{nearest(pattern, params)}")
    return jax.tree.map(lambda path: matches(path, patterns), paths, is_leaf=_is_path)


def select_layers(variables: Any, patterns: Sequence[str]) -> Any:
    """Returns a tree of bools that is True for all arrays, such as running statistics, of layers that match."""
    return jax.tree.map_with_path(lambda path, _: matches(_names(path)[:-1], patterns), variables)


def matches(path: tuple[str, ...], patterns: Sequence[str]) -> bool:
    """Returns whether a pattern matches the path of a layer or parameter, or of a layer that contains it."""
    prefixes = ["/".join(path[:length]) for length in range(1, len(path) + 1)]
    return any(fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes for pattern in patterns)


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """Returns an optimizer that does not change parameters matching a pattern, not even by weight decay.

    The optimizer keeps no state for frozen parameters. To also save the time for their gradients, and to keep the
    running statistics of frozen layers, pass the same patterns to `make_train_step`.

    Args:
      optimizer: optimizer of all other parameters.
      *patterns: patterns of the frozen parameters, as in `select`.
    """

    def labels(params):
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", select(params, *patterns))

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def pause(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """Returns an optimizer that does not change parameters matching a pattern, nor their part of its own state.

    In contrast to `freeze`, its state is that of `optimizer`, which can therefore continue with it and then train
    all parameters.

    Args:
      optimizer: optimizer of all parameters.
      *patterns: patterns of the parameters that stay, as in `select`.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        paused = select(updates, *patterns)
        stay = {_names(path) for path, stays in jax.tree.leaves_with_path(paused) if stays}

        def old_or_new(path: Any, old: Any, new: Any) -> Any:
            # A state holds arrays for parameters in trees with the structure of the parameters.
            names = _names(path)
            return old if any(names[start:] in stay for start in range(len(names))) else new

        updates, new = optax.with_extra_args_support(optimizer).update(updates, state, params, **extra)
        updates = jax.tree.map(lambda stays, each: jnp.zeros_like(each) if stays else each, paused, updates)
        return updates, jax.tree.map_with_path(old_or_new, state, new)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


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


def decay_learning_rate(
    optimizer: optax.GradientTransformation, decay: float, depths: Mapping[str, int]
) -> optax.GradientTransformation:
    """Returns an optimizer that multiplies the learning rate of a layer at depth d by decay^(D - d).

    D is the largest depth, so the last layer keeps its learning rate. This is the layer-wise decay of Clark et al.,
    "ELECTRA", 2020, and of Bao et al., "BEiT", 2021.

    Args:
      optimizer: as in `scale_learning_rate`.
      decay: factor of the learning rate from one layer to the one before it, such as 0.75.
      depths: depth of each top-level layer, see `layer_depths`; others count as last.
    """
    last = max(depths.values())

    def scale(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map_with_path(
            lambda path, update: update * decay ** (last - depths.get(_names(path)[0], last)), updates
        )

    return optax.chain(optimizer, optax.stateless(scale))


def layer_depths(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Returns the depth of each top-level layer of a network, counted from 0 in the order of computation.

    Args:
      model: the network.
      input_shape: (height, width, channels) of the images.
    """
    layers = (layer for layer in measure(model, input_shape).layers if layer.parameters)
    names = dict.fromkeys(layer.path.partition("/")[0] for layer in layers)
    return {name: depth for depth, name in enumerate(names)}


def _names(path: Any) -> tuple[str, ...]:
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _is_masked(node: Any) -> bool:
    # Optax replaces parameters by these nodes where a mask hides them from a transformation.
    return isinstance(node, optax.MaskedNode)


def _is_path(node: Any) -> bool:
    return isinstance(node, tuple)
