"""Eight devices and one give the same numbers, under every strategy, and send nothing but sums."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxcnn import UserError, create_model
from flaxcnn.parallel.strategy import AXIS, Strategy
from flaxcnn.training.eval_step import make_eval_step
from flaxcnn.training.losses import cross_entropy
from flaxcnn.training.state import LossScale
from flaxcnn.training.train_step import make_train_step
from tests.variables import random_state

BATCH, CLASSES = 16, 5
PRECISE = {"num_classes": CLASSES, "dtype": jnp.float64, "param_dtype": jnp.float64}
# Small, and each with what it stands for: neither norm nor dropout; BatchNorm; grouped convolutions; dropout.
NETWORKS = {
    "lenet5": (12, {}),
    "resnet20": (8, {"depths": (1,), "widths": (4,), "stem_features": 4}),
    "resnext29_8x64d": (8, {"depths": (1,), "widths": (8,), "groups": 4, "stem_features": 4}),
    "wrn_28_10": (8, {"depths": (1,), "widths": (4,), "stem_features": 4, "norm": None, "dropout_rate": 0.4}),
}


def network(name, **fields):
    size, own = NETWORKS[name]
    return create_model(name, **(own | PRECISE | fields)), size


def noisy(images, key, sample_ids):
    """Pixels with noise of each visit's own, as an augmentation."""

    def noise(visit):
        own = jax.random.fold_in(jax.random.fold_in(key, visit[0]), visit[1])
        return jax.random.normal(own, images.shape[1:], jnp.float64)

    return images.astype(jnp.float64) / 255 + 0.1 * jax.vmap(noise)(sample_ids)


def batches(size, count, batch=BATCH):
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {
            "image": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
            "label": rng.integers(0, CLASSES, batch).astype(np.int32),
            "mask": np.ones(batch, np.float32),
        }


def train(name, strategy, *, steps=20, synchronized=True, micro_batches=1, optimizer=None, **fields):
    """Trains a network for some steps; returns the losses and the last state."""
    strategy = Strategy(strategy)
    model, size = network(name, **fields)
    optimizer = optimizer or optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.05, 0.9))
    state = jax.device_put(random_state(model, optimizer, (size, size, 3)), strategy.replicated)
    model = strategy.synchronized(model) if synchronized else model
    step = make_train_step(model, optimizer, noisy, micro_batches=micro_batches)
    program, losses = None, []
    for batch in batches(size, steps):
        arguments = (state, {name: strategy.shard(rows) for name, rows in batch.items()})
        program = program or strategy.compile(step, arguments, sharded=(1,), donate=(0,))
        state, metrics = program(*arguments)
        losses.append(float(metrics["loss"]))
    return losses, state


@functools.cache
def on_one_device(name):
    return train(name, "jit")


def assert_same(found, expected, rtol):
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol)
    trees = [(state.params, state.batch_stats, state.opt_state) for _, state in (found, expected)]
    for leaf, other in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=rtol, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("wrn_28_10", "shard_map")]
    + [pytest.param(name, "shard_map", marks=pytest.mark.slow) for name in NETWORKS if name != "wrn_28_10"]
    + [pytest.param(name, "pmap", marks=pytest.mark.slow) for name in NETWORKS],
)
def test_twenty_steps_on_eight_devices_are_those_on_one(x64, name, strategy):
    found = train(name, strategy)
    assert_same(found, on_one_device(name), rtol=1e-9)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(found[1]))
    shapes = [leaf.shape for leaf in jax.tree.leaves(found[1])]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(on_one_device(name)[1])]


def test_with_batch_norm_of_each_device_shard_map_and_pmap_agree_to_the_last_bit(x64):
    (losses, state), (others, other) = (
        train("resnet20", name, synchronized=False) for name in ("shard_map", "pmap")
    )
    assert losses == others and losses != on_one_device("resnet20")[0]
    trees = [(each.params, each.batch_stats, each.opt_state) for each in (state, other)]
    for leaf, twin in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(leaf, twin)


@pytest.mark.parametrize(
    "strategy", ["shard_map", *(pytest.param(s, marks=pytest.mark.slow) for s in ("jit", "pmap"))]
)
def test_the_gradient_is_that_of_the_mean_loss_and_not_eight_times_it(x64, strategy):
    model, size = network("lenet5")
    state = random_state(model, optax.sgd(1.0), (size, size, 3))
    (batch,) = batches(size, 1)
    key, sample_ids = jax.random.split(state.rng)[0], np.stack([np.zeros(BATCH, int), np.arange(BATCH)], axis=1)

    def loss(params):
        logits = model.apply({"params": params}, noisy(batch["image"], key, sample_ids), train=False)
        return cross_entropy(logits, batch["label"]).mean()

    expected = jax.grad(loss)(state.params)
    _, after = train("lenet5", strategy, steps=1, optimizer=optax.sgd(1.0))
    found = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), state.params, after.params)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)


def collectives(text):
    """The collective operations of a compiled program: {kind: their numbers of elements}."""
    found = {}
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-[a-z-]+?|reduce-scatter|collective-[a-z]+)(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
            found.setdefault(match[2], []).extend(sizes)
    return found


@pytest.mark.parametrize("strategy", ["shard_map", "pmap"])
def test_a_grouped_network_sends_sums_of_gradients_and_statistics_alone(strategy):
    strategy = Strategy(strategy)
    model, size = network("resnext29_8x64d", dtype=jnp.float32, param_dtype=jnp.float32)
    optimizer = optax.sgd(0.1)
    state = jax.device_put(random_state(model, optimizer, (size, size, 3)), strategy.replicated)
    (batch,) = batches(size, 1, batch=64)
    batch = {name: strategy.shard(rows) for name, rows in batch.items()}
    step = make_train_step(strategy.synchronized(model), optimizer, lambda x, **_: x / 255)
    sent = collectives(strategy.compile(step, (state, batch), sharded=(1,)).compiled.as_text())
    assert set(sent) == {"all-reduce"}
    parameters, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.batch_stats)
    )
    # Each gradient once; for each statistic a few sums; loss, right answers and count.
    assert parameters <= sum(sent["all-reduce"]) <= parameters + 6 * statistics + 3


def test_partitioning_by_shardings_would_gather_the_batch():
    """What `Strategy` leaves out, and why; it shows, too, that a gathering would be seen."""
    mesh = jax.make_mesh((8,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    grouped = nn.Conv(16, (3, 3), feature_group_count=8)
    images = jax.device_put(np.ones((64, 8, 8, 16), np.float32), NamedSharding(mesh, PartitionSpec(AXIS)))
    variables = jax.device_put(grouped.init(jax.random.key(0), images[:1]), NamedSharding(mesh, PartitionSpec()))
    text = jax.jit(grouped.apply).lower(variables, images).compile().as_text()
    assert "all-gather" in collectives(text)


@pytest.mark.parametrize("strategy", ["jit", pytest.param("shard_map", marks=pytest.mark.slow)])
def test_four_micro_batches_are_the_batch_without_batch_norm(x64, strategy):
    """With augmentation and dropout, too, because both go by the place in the batch."""
    found = train("wrn_28_10", strategy, micro_batches=2 if strategy == "shard_map" else 4)
    assert_same(found, on_one_device("wrn_28_10"), rtol=1e-9)


def test_batch_norm_sees_a_micro_batch_as_it_sees_a_device(x64):
    devices = train("resnet20", "shard_map", steps=3, synchronized=False)
    parts = train("resnet20", "jit", steps=3, micro_batches=8)
    assert_same(parts, devices, rtol=1e-9)


def test_names_and_devices():
    assert Strategy().name == "shard_map" and Strategy().num_devices == 8
    assert Strategy("jit").num_devices == 1 and Strategy("jit").axis_name is None


def test_jit_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="there are 2 processes; write 'shard_map'"):
        Strategy("jit")


def placed(kind, function, state, batch):
    """Runs `function(state, batch, axis_name)` on eight devices in one of the ways that JAX has."""
    names = ("a", "b") if kind.startswith("two axes") else ("d",)
    axis_name = names if len(names) > 1 else names[0]
    on_share = functools.partial(function, axis_name=axis_name)
    shares = {name: rows.reshape(8, -1, *rows.shape[1:]) for name, rows in batch.items()}
    if kind == "pmap":
        return jax.pmap(on_share, axis_name="d", in_axes=(None, 0), out_axes=None)(state, shares)
    if kind == "vmap":
        results = jax.jit(jax.vmap(on_share, axis_name="d", in_axes=(None, 0)))(state, shares)
        return jax.tree.map(lambda leaf: leaf[0], results)
    explicit = "explicit" in kind
    types = (jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto,) * len(names)
    mesh = jax.make_mesh((4, 2) if len(names) > 1 else (8,), names, axis_types=types)
    if explicit:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("d")))
        return jax.jit(functools.partial(function, axis_name=None))(state, batch)
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(names)), "out_specs": PartitionSpec()}
    return jax.jit(jax.shard_map(on_share, mesh=mesh, check_vma="unchecked" not in kind, **specs))(state, batch)


PLACES = ("shard_map", "unchecked shard_map", "two axes", "two axes, unchecked", "pmap", "vmap", "explicit")


def by_default(*few):
    return [kind if kind in few else pytest.param(kind, marks=pytest.mark.slow) for kind in PLACES]


@pytest.mark.parametrize("micro_batches", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", by_default("shard_map", "vmap"))
def test_a_step_anywhere_is_that_on_one_device(x64, kind, micro_batches):
    """With all that a state may hold, dropout and masked examples; then an evaluation."""
    model, size = network("wrn_28_10")
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.05, 0.9), optax.polyak_sgd(0.5))
    step = make_train_step(model, optimizer, noisy, micro_batches=micro_batches, ema_decay=0.9)
    evaluate = make_eval_step(model, lambda images: [images / 255.0])
    state = random_state(model, optimizer, (size, size, 3))
    state = state.replace(ema=state.variables, loss_scale=LossScale(jnp.float32(4), jnp.int32(0)))
    (batch,) = batches(size, 1)
    batch["mask"][:3] = 0

    def both(state, batch, axis_name):
        after, metrics = step(state, batch, axis_name=axis_name)
        return (
            after.replace(rng=jax.random.key_data(after.rng)),
            metrics,
            evaluate(state, batch, axis_name=axis_name),
        )

    expected = jax.jit(functools.partial(both, axis_name=None))(state, batch)
    for leaf, other in zip(*map(jax.tree.leaves, (placed(kind, both, state, batch), expected)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", by_default("shard_map", "pmap"))
def test_batch_norm_and_a_line_search_anywhere_are_those_on_one_device(x64, kind):
    model, size = network("resnet20")
    optimizer = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5, store_grad=True))
    state = random_state(model, optimizer, (size, size, 3))
    (batch,) = batches(size, 1)

    def step(state, batch, axis_name):
        return make_train_step(model.clone(bn_axis_name=axis_name), optimizer, noisy)(state, batch, axis_name)

    def numbers(result):
        state, metrics = result
        return jax.tree.leaves((state.params, state.batch_stats, state.opt_state, metrics))

    expected = jax.jit(functools.partial(step, axis_name=None))(state, batch)
    for leaf, other in zip(numbers(placed(kind, step, state, batch)), numbers(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-8, atol=1e-10)
