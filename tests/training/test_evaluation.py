"""Evaluation counts every example once, whatever the batch size and the number of devices."""

import jax
import numpy as np
import pytest

from flaxcnn.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.loading.loader import open_loaders
from flaxcnn.parallel.strategy import Strategy
from flaxcnn.training.evaluation import evaluation_batch_size, make_evaluator
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.state import TrainState
from tests.images import ArraySource
from tests.variables import random_variables

NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10000, 12, 12, 1), np.uint8)
    return ArraySource(images, rng.integers(0, 10, 10000).astype(np.int32))


def evaluate(dataset, batch_size, name="jit", **data):
    config = TrainConfig(
        model=ModelConfig(name="lenet5"),
        data=DataConfig(**data),
        evaluation=EvaluationConfig(batch_size=batch_size),
    )
    experiment = make_experiment(config, NAMES, (12, 12, 1))
    params = random_variables(experiment.model, (1, 12, 12, 1))["params"]
    state = TrainState(np.int32(0), params, {}, (), None, None, None)
    strategy = Strategy(name)
    state = jax.device_put(state, strategy.replicated)
    sizes = {"test": evaluation_batch_size(config, len(dataset), strategy)}
    datasets = {"test": ImageDataset(dataset, (12, 12, 1))}
    with open_loaders(config.data, strategy, datasets, sizes, 2**30) as loaders:
        return make_evaluator(experiment, strategy, loaders["test"])(state)


@pytest.mark.slow
def test_exactly_ten_thousand_for_every_batch_size(dataset):
    results = {size: evaluate(dataset, size) for size in (1, 7, 128, 4096, 10_001)}
    for result in results.values():
        assert result.count == 10_000 and result.confusion.sum() == 10_000
        assert result.accuracy == results[128].accuracy
        assert result.accuracy_top5 == results[128].accuracy_top5
        np.testing.assert_array_equal(result.confusion, results[128].confusion)
        assert result.loss == pytest.approx(results[128].loss, rel=1e-5)
    np.testing.assert_array_equal(results[1].confusion.sum(1), np.bincount(dataset.labels))


@pytest.mark.parametrize("name", ["shard_map", "pmap"])
@pytest.mark.parametrize("batch_size", [1, 300, 20_000])
def test_eight_devices_count_the_same(dataset, name, batch_size):
    few = ArraySource(dataset.images[:1003], dataset.labels[:1003])
    expected, result = evaluate(few, 1003), evaluate(few, batch_size, name)
    assert result.count == 1003 and result.accuracy == expected.accuracy
    np.testing.assert_array_equal(result.confusion, expected.confusion)


@pytest.mark.parametrize(
    ("name", "devices", "batch_size", "workers"),
    [("jit", 1, 100, 0), ("shard_map", 2, 100, 2), ("pmap", 2, 7, 0), ("shard_map", 8, 256, 0)],
)
def test_a_stream_counts_the_same(dataset, monkeypatch, name, devices, batch_size, workers):
    few = ArraySource(dataset.images[:1003], dataset.labels[:1003])
    expected = evaluate(few, 1003)
    some = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda: some)
    assert Strategy(name).num_devices == devices
    result = evaluate(few, batch_size, name, loading="stream", workers=workers)
    assert result.count == 1003 and result.accuracy == expected.accuracy
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_array_equal(result.confusion, expected.confusion)


def test_class_accuracy_is_the_share_of_each_row(dataset):
    few = ArraySource(dataset.images[:50], np.minimum(dataset.labels[:50], 8))
    result = evaluate(few, 16)
    expected = [(row[index] / row.sum()) if row.sum() else np.nan for index, row in enumerate(result.confusion)]
    np.testing.assert_allclose(result.class_accuracy, expected)
    assert np.isnan(result.class_accuracy[9])


def test_a_count_that_is_off_is_an_error(dataset, monkeypatch):
    import flaxcnn.training.evaluation as evaluation

    batches = evaluation.evaluation_indices
    monkeypatch.setattr(evaluation, "evaluation_indices", lambda *a, **k: list(batches(*a, **k))[:-1])
    for policy in ("stop", "skip"):
        with pytest.raises(RuntimeError, match="evaluated 9984 of 10000 examples"):
            evaluate(dataset, 256, bad_images=policy)
