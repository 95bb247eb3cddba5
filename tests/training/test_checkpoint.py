"""Checkpoints: the newest few and the best stay, and what comes back is what went in, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import UserError
from flaxcnn.models import create_model
from flaxcnn.training.checkpoint import Checkpoints
from flaxcnn.training.state import Carry
from tests.variables import random_state


def carry_of(model, seed=0):
    return Carry.start(random_state(model, optax.sgd(0.1, momentum=0.9), (12, 12, 1), step=seed, seed=seed))


@pytest.fixture(scope="module")
def model():
    return create_model("lenet5", norm="batch_norm")


def test_what_comes_back_is_what_went_in(tmp_path, model):
    saved = carry_of(model, seed=7)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(7, saved, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(7, carry_of(model))
    assert jax.tree.structure(saved) == jax.tree.structure(restored)
    for before, after in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        assert before.dtype == after.dtype and before.sharding == after.sharding
        if jnp.issubdtype(before.dtype, jax.dtypes.prng_key):
            before, after = jax.random.key_data(before), jax.random.key_data(after)
        np.testing.assert_array_equal(before, after)


def test_the_newest_and_the_best_are_kept(tmp_path, model):
    carry = carry_of(model)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, accuracy in ((1, 0.3), (2, 0.9), (3, 0.5), (4, None), (5, 0.6), (6, 0.7)):
            checkpoints.save(step, carry, accuracy)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 5, 6]
        assert (checkpoints.best_step, checkpoints.latest_step) == (2, 6)


def test_an_array_may_be_donated_while_it_is_written(tmp_path, model):
    carry = carry_of(model, seed=3)
    expected = np.array(carry.state.params["fc1"]["kernel"])
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, carry, None)
        for _ in range(20):
            params = overwrite(carry.state.params)
            carry = carry.replace(state=carry.state.replace(params=params))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, carry_of(model))
    np.testing.assert_array_equal(restored.state.params["fc1"]["kernel"], expected)


def test_another_network_is_refused_in_one_line(tmp_path, model):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, carry_of(model), None)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="does not fit") as raised:
        checkpoints.restore(1, carry_of(create_model("lenet5", num_classes=3)))
    assert "\n" not in str(raised.value)


def test_what_a_killed_run_left_half_written_is_cleared_by_the_next_and_not_by_a_reader(tmp_path, model):
    half = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, carry_of(model), None)
    half.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]
    assert half.exists()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, carry_of(model), None)
    assert not half.exists()
