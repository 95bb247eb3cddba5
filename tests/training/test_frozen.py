"""Layers that do not train, or not yet: nothing of them changes, and nothing is computed for them."""

import copy
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import UserError, create_model
from flaxcnn.config import OptimizerConfig
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.trained.run import load_trained
from flaxcnn.training import finetune, fit
from flaxcnn.training.optimizer import make_optimizer
from flaxcnn.training.plan import Plan
from flaxcnn.training.train_step import make_train_step
from tests.conftest import ROOT
from tests.variables import random_state

CLASSES, SIZE, BATCH = 5, 8, 16
FIELDS = {"num_classes": CLASSES, "depths": (1,), "widths": (4,), "stem_features": 4}
BODY = ("stem", "stage*")


def as_float(images, key=None, sample_ids=None):
    return images.astype(jnp.result_type(float)) / 255


def batches(count):
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {
            "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
            "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
            "mask": np.ones(BATCH, np.float32),
        }


def network(**fields):
    dtype = jnp.result_type(float)
    return create_model("resnet20", **FIELDS, dtype=dtype, param_dtype=dtype, **fields)


def train(strategy, *, steps=3, optimizer=None, ema=False, start=None, **keywords):
    """Takes steps; returns the state before them, the state after them, and the compiled program."""
    strategy = Strategy(strategy)
    model = network()
    optimizer = optimizer or optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))
    before = random_state(model, optimizer, (SIZE, SIZE, 3)) if start is None else start
    before.params["stem"]["conv"]["kernel"] = before.params["stem"]["conv"]["kernel"].at[0].set(-0.0)
    if ema:
        before = before.replace(ema={"params": before.params, "batch_stats": before.batch_stats})
    state = jax.device_put(jax.tree.map(jnp.copy, before), strategy.replicated)
    step = make_train_step(strategy.synchronized(model), optimizer, as_float, ema_decay=0.5, **keywords)
    program = None
    for batch in batches(steps):
        arguments = (state, {name: strategy.shard(rows) for name, rows in batch.items()})
        program = program or strategy.compile(step, arguments, sharded=(1,))
        state, _ = program(*arguments)
    return before, state, program


def operations(program):
    analysis = program.compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def assert_identical(tree, other):
    for leaf, twin in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(twin).tobytes()  # bits: -0.0 is not 0.0


def without_head(params):
    return {name: layer for name, layer in params.items() if name != "head"}


@pytest.mark.parametrize("strategy", ["jit", "shard_map", "pmap"])
def test_with_all_but_the_head_frozen_the_head_trains_on_fixed_features(x64, strategy):
    optimizer = finetune.scale_learning_rate(optax.sgd(0.1, 0.9), 10, "head")
    before, after, program = train(strategy, optimizer=optimizer, frozen=BODY, ema=True)
    assert_identical(without_head(after.params), without_head(before.params))
    assert_identical(after.batch_stats, before.batch_stats)
    assert_identical(without_head(after.ema["params"]), without_head(before.params))

    body = network().clone(num_classes=0)
    weights = {name: np.asarray(leaf) for name, leaf in before.params["head"].items()}
    velocity = {name: np.zeros_like(leaf) for name, leaf in weights.items()}
    for batch in batches(3):
        features = np.asarray(body.apply(before.variables, as_float(batch["image"]), train=False))
        logits = features @ weights["kernel"] + weights["bias"]
        p = np.exp(logits - logits.max(-1, keepdims=True))
        error = (p / p.sum(-1, keepdims=True) - np.eye(CLASSES)[batch["label"]]) / BATCH
        for name, gradient in (("kernel", features.T @ error), ("bias", error.sum(0))):
            velocity[name] = 0.9 * velocity[name] + gradient
            weights[name] = weights[name] - 10 * 0.1 * velocity[name]
    for name, leaf in weights.items():
        np.testing.assert_allclose(after.params["head"][name], leaf, rtol=1e-9)

    *_, whole = train(strategy, steps=1)
    assert operations(program) < 0.5 * operations(whole)


def test_frozen_batch_norm_may_still_follow_the_batches():
    before, after, _ = train("jit", frozen=BODY, frozen_batch_stats=False)
    assert_identical(without_head(after.params), without_head(before.params))
    for leaf, old in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(before.batch_stats), strict=True):
        assert np.all(np.asarray(leaf) != np.asarray(old))


def test_only_the_norms_of_frozen_layers_are_kept():
    before, after, _ = train("jit", frozen=("stem", "stage1_block1/conv1/conv"))
    assert_identical(after.batch_stats["stem"], before.batch_stats["stem"])
    assert_identical(
        after.params["stage1_block1"]["conv1"]["conv"], before.params["stage1_block1"]["conv1"]["conv"]
    )
    moved = after.batch_stats["stage1_block1"]["conv1"]["norm"]["mean"]
    assert np.all(moved != before.batch_stats["stage1_block1"]["conv1"]["norm"]["mean"])


@pytest.mark.parametrize("name", ["jit", "shard_map"])
def test_micro_batches_change_nothing_for_frozen_norms(x64, name):
    whole, parts = (train(name, frozen=("stem", "stage*"), micro_batches=count)[1] for count in (1, 2))
    for leaf, twin in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(leaf, twin, rtol=1e-12, atol=1e-15)


def test_a_paused_layer_continues_as_if_it_had_just_begun():
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01, clip_norm=1.0)
    whole = make_optimizer(config, optax.constant_schedule(0.1))
    paused = make_optimizer(config, optax.constant_schedule(0.1), paused=BODY)
    before, between, _ = train("jit", optimizer=paused, frozen=BODY)
    assert_identical(without_head(between.params), without_head(before.params))
    momentum = next(s for s in jax.tree.leaves(between.opt_state, is_leaf=lambda s: hasattr(s, "trace")))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(without_head(momentum.trace)))
    assert np.any(momentum.trace["head"]["bias"])
    counts = [leaf for leaf in jax.tree.leaves(between.opt_state) if leaf.shape == ()]
    assert counts and all(count == 3 for count in counts)  # the schedule goes on for all layers
    _, after, _ = train("jit", optimizer=whole, start=between)
    for leaf, old in zip(jax.tree.leaves(after.params), jax.tree.leaves(between.params), strict=True):
        assert np.any(np.asarray(leaf) != np.asarray(old))


def test_the_learning_rate_decays_from_layer_to_layer():
    model = create_model("lenet5", num_classes=CLASSES)
    depths = finetune.layer_depths(model, (12, 12, 1))
    assert list(depths) == ["conv1", "conv2", "fc1", "fc2", "head"]
    params = random_state(model, optax.identity(), (12, 12, 1)).params
    config = OptimizerConfig(learning_rate=0.1, momentum=0.0, layer_decay=0.5)
    config.multipliers = {"conv1": 3.0, "*/bias": 2.0}
    optimizer = make_optimizer(config, optax.constant_schedule(0.1), depths=depths)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    for layer, depth in depths.items():
        for path, leaf in jax.tree.leaves_with_path(updates[layer]):
            own = (3 if layer == "conv1" else 1) * (2 if path[-1].key == "bias" else 1)
            np.testing.assert_allclose(leaf, -0.1 * own * 0.5 ** (4 - depth), rtol=1e-6)


@pytest.fixture
def unfreezing(config):
    """Four epochs of 22 steps; the first layers begin to train after 30 steps."""
    config.duration, config.model.frozen, config.model.unfreeze = "4 epochs", ("conv*",), "30 steps"
    config.optimizer.multipliers = {"head": 2.0}
    config.optimizer.ema_decay = 0.9
    config.checkpoint.every, config.checkpoint.keep = "10 steps", 100
    return config


def params_at(workdir, step):
    return jax.device_get(load_trained(workdir, str(step))[1].params)


def test_frozen_layers_begin_to_train_at_their_step_and_a_restart_changes_nothing(unfreezing, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(copy.deepcopy(unfreezing), whole)
    first, before, after = (params_at(whole, step) for step in (10, 30, 40))
    for layer in ("conv1", "conv2"):
        assert_identical(first[layer], before[layer])
        assert np.any(after[layer]["conv"]["kernel"] != before[layer]["conv"]["kernel"])
    for duration in ("15 steps", "30 steps", "45 steps", "4 epochs"):
        unfreezing.duration = duration
        fit(copy.deepcopy(unfreezing), parts)
    last = int(load_trained(whole)[1].step)
    assert_identical(params_at(whole, last), params_at(parts, last))


def test_calls_of_several_steps_end_where_layers_unfreeze(unfreezing):
    plan = Plan(unfreezing, 64 * 22, Strategy("jit"))
    taken, ends = 0, set()
    for indices in plan.batch_indices(1, 8):
        taken += indices.count
        ends.add(taken)
    assert 30 in ends


@pytest.mark.slow
def test_a_run_that_is_killed_in_both_phases_ends_as_one_that_is_not(tmp_path, data_dir):
    flags = [
        *("--config.duration=8 epochs", "--config.model.frozen=('conv1',)", "--config.model.unfreeze=3 epochs"),
        *("--config.checkpoint.every=20 steps", f"--config.data.data_dir={data_dir}"),
    ]

    def start(workdir):
        command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "100"})

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for epoch in ("epoch 2/8", "epoch 6/8"):  # before and after the layers unfreeze
        process = start(killed)
        for line in process.stdout:
            if line.startswith(epoch):
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(killed).wait() == 0
    states = [jax.device_get(load_trained(each)[1].params) for each in (whole, killed)]
    assert_identical(*states)
    assert (whole / "results.json").read_text() == (killed / "results.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frozen": ("*",)}, "matches every parameter"),
        ({"frozen": ("cnov1",)}, r"model\.frozen: no layer matches 'cnov1'; did you mean conv1"),
        ({"unfreeze": "1 epochs"}, r"model\.frozen is empty"),
        ({"frozen": ("conv1",), "unfreeze": "0 steps"}, "longer than nothing"),
        ({"frozen": ("conv1",), "unfreeze": "soon"}, r"model\.unfreeze"),
    ],
)
def test_what_cannot_be_frozen_is_refused_before_anything_is_written(config, tmp_path, change, message):
    for name, value in change.items():
        setattr(config.model, name, value)
    with pytest.raises(UserError, match=message):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
