"""Several steps at once leave what single steps leave, wherever a run is stopped."""

import itertools
import json
import os
import signal
from types import SimpleNamespace

import flax.linen as nn
import numpy as np
import pytest
import rich.console

from flaxcnn import UserError
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.training import compiled_steps, loop, milestones
from flaxcnn.training.plan import Plan
from tests.checkpoints import saved_arrays


class Dense(nn.Module):
    """A layer of so many outputs, which are not pooled."""

    features: int

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.features)(images)


@pytest.fixture
def short(config):
    """13 steps of one epoch, with records, evaluations and checkpoints that do not fall together."""
    config.batch_size, config.duration = 16, "13 steps"
    config.logging.every, config.evaluation.every, config.checkpoint.every = "5 steps", "7 steps", "4 steps"
    return config


def fit(config, workdir, monkeypatch, at_once, before=lambda number: None):
    """Trains with so many steps at once, and returns how many were taken each time."""
    counts = []

    class Counted(compiled_steps.CompiledSteps):
        def __call__(self, loop_state, batch, *, step):
            counts.append(batch.count)
            before(len(counts))
            return super().__call__(loop_state, batch, step=step)

    def counted(*arguments):
        return Counted(**vars(compiled_steps.compile_steps(*arguments)))

    monkeypatch.setattr(loop, "steps_per_call", lambda *_: at_once)
    monkeypatch.setattr(loop, "compile_steps", counted)
    loop.fit(config, workdir, console=rich.console.Console(quiet=True))
    return counts


def outcome(workdir):
    """The final state, and the records without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = {"step", "loss", "accuracy", "skipped", "left_out", "learning_rate"}
    return saved_arrays(workdir), [{key: line[key] for key in line.keys() & keys} for line in lines]


def test_the_host_is_back_wherever_it_has_something_to_do(short):
    short.logging.profile = (2, 6)
    plan = Plan(short, 300, Strategy("jit"))  # 18 steps an epoch
    ends = itertools.accumulate(indices.count for indices in plan.batch_indices(1, 3))
    assert list(ends) == [1, 4, 5, 6, 7, 8, 10, 12, 13]


def test_the_indices_of_several_steps_are_those_of_each(short):
    short.duration = "2 epochs"
    plan = Plan(short, 100, Strategy("jit"))  # 6 steps an epoch
    single = list(plan.batch_indices(3))
    several = []
    for found in plan.batch_indices(3, 4):
        assert found.indices.shape == found.mask.shape == (16, 4)
        several += [(found.epoch, found.indices[:, number].tolist()) for number in range(found.count)]
    assert several == [(found.epoch, found.indices.tolist()) for found in single]


@pytest.mark.slow
def test_several_steps_at_once_are_single_steps(short, tmp_path, monkeypatch, x64):
    short.duration, short.model.dtype = "5 steps", "float64"
    del short.model.options.norm  # its running statistics begin in float32
    assert fit(short, tmp_path / "one", monkeypatch, 1) == [1] * 5
    assert fit(short, tmp_path / "several", monkeypatch, 3) == [3, 1, 1]
    (single, records), (several, others) = (outcome(tmp_path / name) for name in ("one", "several"))
    assert len(records) == len(others) == 3
    for record, other in zip(records, others, strict=True):
        assert other == pytest.approx(record, rel=1e-9)
    for a, b in zip(several, single, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_several_steps_at_once_go_on_bit_for_bit_after_an_interrupt(short, tmp_path, monkeypatch):
    def interrupt(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    assert fit(short, tmp_path / "whole", monkeypatch, 3) == [3, 1, 1, 2, 1, 2, 2, 1]
    with pytest.raises(loop.Interrupted, match="after step 5"):
        fit(short, tmp_path / "stopped", monkeypatch, 3, before=interrupt)
    # Cut otherwise than before, so that it shows whether that matters.
    assert fit(short, tmp_path / "stopped", monkeypatch, 2) == [2, 1, 2, 2, 1]
    whole, stopped = (outcome(tmp_path / name) for name in ("whole", "stopped"))
    assert stopped[1] == whole[1]
    assert all(np.array_equal(a, b) for a, b in zip(stopped[0], whole[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 3])
def test_divergence_is_seen_at_the_next_pause(short, tmp_path, monkeypatch, at_once):
    short.optimizer.learning_rate = 1e38
    monkeypatch.setattr(milestones, "MAX_SKIPPED_STEPS", 3)
    with pytest.raises(UserError, match="diverged by step 4: the gradients of the last 3 steps"):
        fit(short, tmp_path / "run", monkeypatch, at_once)


def test_cpus_and_long_steps_and_streams_take_one_step_at_a_time():
    # No accelerator is there in the tests; shapes decide, so stand-ins do.
    def at_once(platform, macs, per_device_batch, resident):
        strategy = SimpleNamespace(device=SimpleNamespace(platform=platform))
        return compiled_steps.steps_per_call(
            SimpleNamespace(model=Dense(macs // 10), input_shape=(1, 1, 10)),
            SimpleNamespace(strategy=strategy, per_device_batch=per_device_batch),
            SimpleNamespace(resident=resident),
        )

    assert at_once("cpu", 400_000, 64, {"image": 0}) == 1
    assert at_once("gpu", 400_000, 64, {}) == 1
    assert at_once("gpu", 400_000, 64, {"image": 0}) == compiled_steps.MAX_STEPS
    assert at_once("gpu", 400_000, 10**5, {"image": 0}) == 8
    assert at_once("gpu", 4_000_000, 10**6, {"image": 0}) == 1
