import numpy as np
import pytest

from flaxcnn.data.loading.sampler import epoch_order, evaluation_indices, training_indices


def test_an_epoch_is_a_permutation_and_each_another():
    orders = [epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    for i in range(6):
        for j in range(i):
            # Two independent permutations agree in one place on average.
            assert (orders[i] == orders[j]).sum() < 8


def test_every_position_is_equally_likely():
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), epoch_order(7, epoch, 6)] += 1
    # 500 expected in each cell, standard deviation sqrt(3000 * 1/6 * 5/6) = 20.4
    assert np.abs(counts - 500).max() < 5 * 20.4


def test_the_order_is_that_of_philox_for_all_time():
    keys = np.random.Philox(key=np.array([3, 5], np.uint64)).random_raw(8)
    np.testing.assert_array_equal(keys[epoch_order(3, 5, 8)], np.sort(keys))
    np.testing.assert_array_equal(epoch_order(3, 5, 8), [0, 6, 2, 1, 3, 4, 7, 5])


def test_batches_are_consecutive_and_drop_only_the_rest():
    batches = [training_indices(0, 4, step, batch_size=32, num_examples=100) for step in range(3)]
    np.testing.assert_array_equal(np.concatenate(batches), epoch_order(0, 4, 100)[:96])


def test_a_batch_depends_on_nothing_but_its_arguments():
    first = training_indices(1, 2, 3, batch_size=8, num_examples=64).copy()
    for epoch in range(5):
        training_indices(9, epoch, 0, batch_size=8, num_examples=100)
    np.testing.assert_array_equal(training_indices(1, 2, 3, batch_size=8, num_examples=64), first)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_together_see_the_global_batch(processes):
    arguments = {"batch_size": 16, "num_examples": 100}
    shares = [
        training_indices(0, 1, 2, process_index=index, process_count=processes, **arguments)
        for index in range(processes)
    ]
    np.testing.assert_array_equal(np.concatenate(shares), training_indices(0, 1, 2, **arguments))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="10 is not divisible by 4"):
        training_indices(0, 0, 0, batch_size=10, num_examples=100, process_count=4)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 101, 4096])
def test_evaluation_sees_every_example_once_in_batches_of_one_shape(batch_size):
    batches = list(evaluation_indices(100, batch_size))
    assert {batch.indices.shape for batch in batches} == {(batch_size,)}
    seen = np.concatenate([batch.indices[batch.mask == 1] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(100))
    assert all(batch.indices.max() < 100 for batch in batches)
