"""What is compiled in haste has the values of what is not, and a program from the cache those of a new one."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import create_model
from flaxcnn.parallel.compilation import cheap_jit, quick_compile
from flaxcnn.training.state import create_state
from tests.conftest import ROOT
from tests.marks import sampled

# The tests themselves run with less optimisation; these are XLA's defaults.
FULL = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def initialised_alike(create):
    lowered = jax.jit(create).lower()
    hasty, full = (
        jax.tree.leaves(lowered.compile(compiler_options=FULL | more)()) for more in (quick_compile(), {})
    )
    return [np.asarray(leaf).tobytes() for leaf in hasty] == [np.asarray(leaf).tobytes() for leaf in full]


def test_draws_in_haste_are_those_of_full_optimisation():
    def create():
        draw = jax.nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
        return draw(jax.random.key(3), (3, 3, 5, 33))

    assert initialised_alike(create)


@pytest.mark.parametrize("name", sampled(["resnet20", "alexnet", "googlenet", "lenet5", "regnet_x_400mf"], every=3))
def test_networks_initialised_in_haste_are_those_of_full_optimisation(name):
    model = create_model(name, num_classes=10)
    shape = {"lenet5": (28, 28, 1), "resnet20": (32, 32, 3)}.get(name, (64, 64, 3))

    def create():
        return create_state(model, optax.identity(), seed=1, input_shape=shape).variables

    assert initialised_alike(create)


def test_a_function_in_haste_takes_other_shapes_and_keeps_its_name():
    @cheap_jit
    def double(tree):
        """Doubles."""
        return jax.tree.map(lambda leaf: leaf * 2, tree)

    assert double.__doc__ == "Doubles."
    assert double({"a": jnp.arange(2), "b": jnp.ones(())})["a"].tolist() == [0, 2]
    assert double(jnp.ones(3)).tolist() == [2, 2, 2]


@pytest.mark.slow
def test_a_start_with_compiled_programs_has_the_numbers_of_one_without(tmp_path, data_dir):
    environment = os.environ | {"FLAXCNN_CACHE": str(tmp_path / "cache"), "TFDS_DATA_DIR": str(data_dir)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XLA_FLAGS"):
        environment.pop(name, None)
    records, cached = [], []
    for number in range(2):
        workdir = tmp_path / str(number)
        command = [sys.executable, "train.py", "--config.duration=1 epochs", f"--workdir={workdir}"]
        command += ["--config.model.options.norm=batch_norm"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        records.append([{key: line[key] for key in line.keys() & {"loss", "accuracy", "step"}} for line in lines])
        cached.append(len(list((tmp_path / "cache").rglob("jit_train_batch*-cache"))))
    assert records[0] == records[1]
    assert cached == [1, 1]
