"""The page of pipelines: every block, on eight devices, ends with the numbers of the first."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxcnn import create_model
from tests.conftest import ROOT

BEGIN, *BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/pipelines.md").read_text(encoding="utf-8"), re.S)


def run(block):
    """Runs a block of the page; returns its parameters and its running statistics, each by path."""
    names = {}
    exec(BEGIN + block, names)
    if "network" in names:
        trees = [nnx.to_pure_dict(nnx.state(names["network"], kind)) for kind in (nnx.Param, nnx.BatchStat)]
    else:
        trees = [names["state"].params, names["state"].batch_stats]
    return [{jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in trees]


@pytest.fixture(scope="module")
def expected():
    return run(BLOCKS[0])


def test_the_page_has_every_pipeline():
    for word in ("Explicit", "Auto", "shard_map", "pmap", "jax.grad", "ToNNX"):
        assert any(word in block for block in BLOCKS[1:]), word


def test_the_first_block_trains(expected):
    for tree, before in zip(expected, run(""), strict=True):
        assert any(np.abs(tree[path] - before[path]).max() > 0.01 for path in tree)


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_a_block_ends_with_the_numbers_of_the_first(expected, number):
    assert jax.device_count() == 8
    for tree, others in zip(run(BLOCKS[number]), expected, strict=True):
        assert tree.keys() == others.keys()
        for path in tree:
            np.testing.assert_allclose(np.asarray(tree[path]), others[path], rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_shard_map_without_its_check_gives_the_same(expected):
    (block,) = (block for block in BLOCKS if "jax.shard_map" in block)
    for tree, others in zip(
        run(block.replace("out_specs=P()", "out_specs=P(), check_vma=False")), expected, strict=True
    ):
        for path in tree:
            np.testing.assert_allclose(np.asarray(tree[path]), others[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_dropout_under_nnx_draws_in_training_and_rests_in_evaluation():
    model = create_model("wrn_28_10", num_classes=5, depths=(1,), widths=(4,), stem_features=4, dropout_rate=0.5)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    network = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(params=0, dropout=1))
    network.lazy_init(images, train=False)
    first, second = (network(images, train=True, mutable=["batch_stats"]) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(network(images, train=False), network(images, train=False))
