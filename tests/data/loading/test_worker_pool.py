"""Worker pools: the same pixels in the same order whatever the number of processes, and a death that is
reported."""

import dataclasses
import os
import signal
import time

import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data.dataset import ImageDataset
from flaxcnn.data.decoding.errors import BadImage
from flaxcnn.data.decoding.images import decode
from flaxcnn.data.loading.sampler import BatchIndices, evaluation_indices, training_indices
from flaxcnn.data.loading.worker_pool import CHUNK, WorkerPool
from flaxcnn.data.sources.opening import open_source
from tests.images import write_folder

PER_CLASS = 30  # of which a fifth is for testing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures") / "three", PER_CLASS)


def dataset_of(folder, split="train", crop="random_resized"):
    source = open_source(f"folder:{folder}", split)
    return ImageDataset(source, (32, 32, 3), crop=crop, seed=5, shorter_side=(40, 50))


def indices_of(count, batch_size, num_examples, **process):
    per_epoch = num_examples // batch_size
    for number in range(count):
        epoch, step = divmod(number, per_epoch)
        sizes = {"batch_size": batch_size, "num_examples": num_examples}
        examples = training_indices(5, epoch, step, **sizes, **process)
        yield BatchIndices(epoch, examples, np.ones(len(examples), np.float32))


def no_bad(example, reason):
    raise AssertionError((example, reason))


def copies(batches):
    return [{name: np.array(leaf) for name, leaf in batch.items()} for batch in batches]


def batches_of(dataset, indices, batch_size, workers, on_bad=no_bad):
    with WorkerPool({"train": dataset}, rows={"train": batch_size}, workers=workers) as pool:
        return copies(pool.batches("train", indices, on_bad))


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys() == {"image", "label", "mask", "sample_id"}
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.fixture(scope="module")
def expected(folder):
    """Seven batches of ten over two epochs of 72 examples and more, each picture delivered alone."""
    dataset = dataset_of(folder)
    batches = []
    for indices_ in indices_of(9, 10, 72):
        images, labels = [], []
        for example in indices_.indices:
            ((encoded, label),) = dataset.source.read(dataset.source.items([example]))
            images.append(dataset.decode(encoded, indices_.epoch, int(example)))
            labels.append(label)
        visit = np.stack([np.full(10, indices_.epoch), indices_.indices], axis=1).astype(np.int32)
        batches.append(
            {
                "image": np.stack(images),
                "label": np.array(labels, np.int32),
                "mask": indices_.mask,
                "sample_id": visit,
            }
        )
    return batches


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_batches_are_the_same_for_every_number_of_workers(folder, expected, workers):
    assert_equal(batches_of(dataset_of(folder), indices_of(9, 10, 72), 10, workers), expected)


def test_a_stream_that_starts_later_goes_on_with_the_same_batches(folder, expected):
    indices = list(indices_of(9, 10, 72))[5:]
    assert_equal(batches_of(dataset_of(folder), indices, 10, 1), expected[5:])


def test_two_processes_see_the_batches_of_one(folder, expected):
    halves = [
        batches_of(dataset_of(folder), indices_of(9, 10, 72, process_index=index, process_count=2), 5, 0)
        for index in range(2)
    ]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_equal(joined, expected)


def test_crops_differ_between_epochs_and_seeds(folder, expected):
    def pixels(batches, epoch):
        found = {}
        for batch in batches:
            for image, (its_epoch, example) in zip(batch["image"], batch["sample_id"], strict=True):
                if its_epoch == epoch:
                    found[int(example)] = image.tobytes()
        return found

    first, second = pixels(expected, 0), pixels(expected, 1)
    common = first.keys() & second.keys()
    assert len(first) == 70 and len(common) > 10
    assert sum(first[example] == second[example] for example in common) == 0
    other = dataclasses.replace(dataset_of(folder), seed=6)
    changed = pixels(batches_of(other, indices_of(7, 10, 72), 10, 0), 0)
    assert sum(first[example] == changed[example] for example in first.keys() & changed.keys()) == 0


def test_the_last_batch_of_an_evaluation_is_filled_up_with_nothing(folder):
    dataset = dataset_of(folder, "test", crop="center")
    indices = evaluation_indices(18, 7)
    batches = batches_of(dataset, indices, 7, 1)
    assert [batch["mask"].sum() for batch in batches] == [7, 7, 4]
    assert not batches[-1]["image"][4:].any() and batches[-1]["image"][:4].any((1, 2, 3)).all()
    assert np.concatenate([batch["sample_id"][:, 1] for batch in batches])[:18].tolist() == list(range(18))


def test_a_batch_of_many_chunks_is_in_order(folder):
    dataset = dataset_of(folder, crop="center")
    size = 2 * CHUNK + 7
    (batch,) = batches_of(dataset, indices_of(1, size, 72), size, 2)
    for row in (0, CHUNK - 1, CHUNK, 2 * CHUNK, size - 1):
        example = int(batch["sample_id"][row, 1])
        ((encoded, label),) = dataset.source.read(dataset.source.items([example]))
        np.testing.assert_array_equal(batch["image"][row], dataset.decode(encoded, 0, example))
        assert batch["label"][row] == label


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_named_masked_and_black(folder, tmp_path, workers):
    path = write_folder(tmp_path / "bad", 10)
    victim = path / "temple" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:900])
    (path / "flower" / "4.jpg").write_bytes(b"")
    source = open_source(f"folder:{path}", "train+test")
    dataset = ImageDataset(source, (32, 32, 3), crop="center")
    noted = []
    batches = batches_of(
        dataset, indices_of(3, 10, 30), 10, workers, lambda example, reason: noted.append((example, reason))
    )
    assert sorted((source.describe(example), reason) for example, reason in noted) == [
        (str(path / "flower" / "4.jpg"), "empty file"),
        (str(victim), "truncated"),
    ]
    bad = {example for example, _ in noted}
    for batch in batches:
        for image, mask, (_, example) in zip(batch["image"], batch["mask"], batch["sample_id"], strict=True):
            assert (mask == 0) == (example in bad) == (not image.any())


def test_what_on_bad_raises_ends_the_stream(folder, tmp_path):
    path = write_folder(tmp_path / "bad", 10)
    for file in path.rglob("*.jpg"):
        file.write_bytes(b"<html>")

    def refuse(example, reason):
        raise UserError(reason)

    dataset = ImageDataset(open_source(f"folder:{path}", "train"), (32, 32, 3), crop="center")
    with pytest.raises(UserError, match="neither JPEG nor PNG"):
        batches_of(dataset, indices_of(2, 12, 24), 12, 1, refuse)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_death_of_a_process_is_reported_and_not_waited_for(folder, number):
    with WorkerPool({"train": dataset_of(folder)}, rows={"train": 10}, workers=2) as pool:
        batches = pool.batches("train", indices_of(1000, 10, 72), no_bad)
        next(batches)
        os.kill(pool._workers[0].process.pid, number)
        start = time.monotonic()
        with pytest.raises(
            UserError, match=rf"ended by signal {number.name}.*; the same command continues"
        ) as raised:
            for _ in batches:
                pass
        assert time.monotonic() - start < 30 and "\n" not in str(raised.value)
        assert ("memory runs out" in str(raised.value)) == (number == signal.SIGKILL)


def wait_until_signals_are_ignored(process):
    wanted = 1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = open(f"/proc/{process.pid}/status").read()  # noqa: PTH123, SIM115
        if int(status.split("SigIgn:")[1].split()[0], 16) & wanted == wanted:
            return
        time.sleep(0.01)
    pytest.fail("the process does not ignore the signals")


def test_processes_end_with_the_stream_and_ignore_signals_until_then(folder):
    with WorkerPool({"train": dataset_of(folder)}, rows={"train": 10}, workers=2) as pool:
        batches = pool.batches("train", indices_of(8, 10, 72), no_bad)
        next(batches)
        processes = [worker.process for worker in pool._workers]
        for process in processes:
            wait_until_signals_are_ignored(process)  # it may still be starting
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        assert len(list(batches)) == 7
        batches.close()
    assert [process.poll() for process in processes] == [0, 0]


def test_workers_never_load_jax_or_tensorflow(folder, data_dir):
    digits = ImageDataset(open_source("digits", "train", str(data_dir)), (8, 8, 1))
    datasets = {"train": dataset_of(folder), "digits": digits}
    with WorkerPool(datasets, rows={"train": 10, "digits": 10}, workers=1) as pool:
        for name in datasets:
            list(pool.batches(name, indices_of(1, 10, 72), no_bad))
        maps = open(f"/proc/{pool._workers[0].process.pid}/maps").read()  # noqa: PTH123, SIM115
        assert "cv2" in maps and "array_record" in maps
        assert "jaxlib" not in maps and "tensorflow" not in maps.replace("tensorflow_datasets", "")


def test_damage_to_a_set_is_said(folder, data_dir, tmp_path):
    import shutil

    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    source = open_source("digits", "train", str(tmp_path))
    for file in tmp_path.rglob("*train.array_record*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 4 : -len(content) // 4] = bytes(len(content) // 2 + 1)
        file.write_bytes(content)
    dataset = ImageDataset(source, (8, 8, 1))
    with pytest.raises(UserError, match=r"cannot read split 'train' of digits in .*prepare it again"):
        batches_of(dataset, indices_of(20, 64, 1438), 64, 1)


def test_a_picture_of_another_size_than_the_set_promises_is_bad(folder):
    dataset = ImageDataset(open_source(f"folder:{folder}", "train"), (60, 80, 3))
    ((encoded, _),) = dataset.source.read(dataset.source.items([0]))
    shape = decode(encoded, 3).shape
    if shape == (60, 80, 3):
        pytest.fail("the fixture's first picture has the very size")
    with pytest.raises(BadImage, match=f"{shape[1]}x{shape[0]} pixels instead of 80x60"):
        dataset.decode(encoded, 0, 0)
