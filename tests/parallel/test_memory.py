"""How many micro-batches a step is cut into."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import UserError, create_model
from flaxcnn.parallel import memory
from flaxcnn.parallel.program import Program
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.training.train_step import make_train_step
from tests.variables import random_state


class Compiled:
    """A program that takes 100 bytes and 1,000 divided by its micro-batches."""

    def __init__(self, micro_batches):
        self.micro_batches = micro_batches

    @property
    def compiled(self):
        return self

    def memory_analysis(self):
        class Analysis:
            argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 90, 50, 40
            temp_size_in_bytes = 1000 // self.micro_batches

        return Analysis


def find(wanted, limit, size=24):
    return memory.find_program(Compiled, micro_batches=wanted, per_device_batch=size, limit=limit)[1]


@pytest.mark.parametrize(("limit", "found"), [(1100, 1), (1099, 2), (600, 2), (599, 4), (225, 8), (150, 24)])
def test_the_least_number_that_fits_is_found(limit, found):
    assert find(None, limit) == found


def test_what_is_wanted_is_taken_if_it_fits():
    assert find(3, 1100) == 3


def test_otherwise_what_would_fit_is_said():
    with pytest.raises(UserError, match=r"--config\.parallel\.micro_batches=6 takes"):
        find(3, 270)
    with pytest.raises(UserError, match=r"even 1 images at a time take .*: use more devices"):
        find(None, 120)


def test_a_real_program_is_measured():
    """Its argument is donated to its result, and between them it needs the square."""
    double = jax.jit(lambda x: (x @ x.T) @ x, donate_argnums=0)
    program = Program(double.lower(jnp.zeros((512, 256), jnp.float32)).compile(), waits=False)
    own, square = 512 * 256 * 4, 512 * 512 * 4
    assert own + square <= memory.program_bytes(program) <= 2 * own + 2 * square


def test_the_memory_of_a_cpu_is_shared_by_its_devices():
    (whole,) = {memory.device_bytes(device) for device in jax.devices()}
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


@pytest.mark.parametrize(("count", "text"), [(1 << 20, "1.0 MiB"), (5 << 29, "2.5 GiB")])
def test_bytes_as_text(count, text):
    assert memory.as_text(count) == text


def test_micro_batches_do_save_memory():
    """Of a real step, most of whose memory are the maps of its images."""
    strategy, model = Strategy("jit"), create_model("lenet5")
    state = random_state(model, optax.sgd(0.1), (28, 28, 1))
    batch = {"image": np.zeros((512, 28, 28, 1), np.uint8), "label": np.zeros(512, np.int32), "mask": np.ones(512)}
    needed = []
    for parts in (1, 8):
        step = make_train_step(model, optax.sgd(0.1), lambda x, **_: x / 255, micro_batches=parts)
        needed.append(memory.program_bytes(strategy.compile(step, (state, batch), sharded=(1,))))
    assert needed[1] < needed[0] / 2
