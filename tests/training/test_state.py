"""A state goes through flax's serialization and comes back as it was."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.training.state import LoopState, LossScale
from flaxcnn.training.train_step import make_train_step
from tests.training.test_step import Statistics, as_float, batch_of, state_of


def numbers(tree):
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(leaf) for leaf in leaves]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("extras", [False, True])
def test_bytes_and_back(impl, extras):
    model = Statistics()
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adam(1e-3))
    state = state_of(model, optimizer).replace(rng=jax.random.key(7, impl=impl))
    if extras:
        state = state.replace(ema=state.variables, loss_scale=LossScale.start())
    blank = state_of(model, optimizer).replace(
        rng=jax.random.key(0, impl=impl), ema=state.ema, loss_scale=state.loss_scale
    )
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert restored.rng.dtype == state.rng.dtype
    for leaf, other in zip(numbers(restored), numbers(state), strict=True):
        np.testing.assert_array_equal(leaf, other)
    step = jax.jit(make_train_step(model, optimizer, as_float, ema_decay=0.9))
    for leaf, other in zip(numbers(step(restored, batch_of(8))), numbers(step(state, batch_of(8))), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_what_a_loop_carries_goes_through_a_state_dict():
    loop_state = LoopState.start(state_of(Statistics(), optax.sgd(0.1)))
    state_dict = flax.serialization.to_state_dict(loop_state)
    assert all(
        isinstance(leaf, (jax.Array, np.ndarray)) and leaf.dtype.kind in "fiu"
        for leaf in jax.tree.leaves(state_dict)
    )
    restored = flax.serialization.from_state_dict(loop_state, state_dict)
    assert jax.tree.structure(restored) == jax.tree.structure(loop_state)


def test_the_shapes_of_a_state_are_target_enough():
    state = state_of(Statistics(), optax.sgd(0.1))
    shapes = jax.eval_shape(lambda: state)
    restored = flax.serialization.from_bytes(shapes, flax.serialization.to_bytes(state))
    assert restored.rng.dtype == state.rng.dtype


def test_a_state_without_a_part_is_refused_by_its_name():
    state = state_of(Statistics(), optax.sgd(0.1))
    state_dict = flax.serialization.to_state_dict(state)
    del state_dict["rng"]
    with pytest.raises(ValueError, match="rng"):
        flax.serialization.from_state_dict(state, state_dict)
