"""Streams: the same pixels in the same order whatever the number of processes, and a death that is reported."""

import dataclasses
import os
import signal
import time

import numpy as np
import pytest

from flaxcnn import UserError
from flaxcnn.data import pictures
from flaxcnn.data.delivery import Delivery
from flaxcnn.data.sampler import evaluation_batches, training_batch
from flaxcnn.data.sources import open_source
from flaxcnn.data.stream import CHUNK, Request, Stream
from tests.pictures import write_folder

PER_CLASS = 30  # of which a fifth is for testing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures") / "three", PER_CLASS)


def delivery_of(folder, split="train", crop="random_resized"):
    source = open_source(f"folder:{folder}", split)
    return Delivery(source, (32, 32, 3), crop=crop, seed=5, shorter_side=(40, 50))


def training_requests(count, batch_size, num_examples, **process):
    per_epoch = num_examples // batch_size
    for number in range(count):
        epoch, step = divmod(number, per_epoch)
        sizes = {"batch_size": batch_size, "num_examples": num_examples}
        examples = training_batch(5, epoch, step, **sizes, **process)
        yield Request(epoch, examples, np.ones(len(examples), np.float32))


def no_bad(example, reason):
    raise AssertionError((example, reason))


def copies(batches):
    return [{name: np.array(leaf) for name, leaf in batch.items()} for batch in batches]


def batches_of(delivery, requests, batch_size, workers, on_bad=no_bad):
    with Stream({"train": delivery}, batch_sizes={"train": batch_size}, workers=workers) as stream:
        return copies(stream.batches("train", requests, on_bad))


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys() == {"image", "label", "mask", "visit"}
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.fixture(scope="module")
def expected(folder):
    """Seven batches of ten over two epochs of 72 examples and more, each picture delivered alone."""
    delivery = delivery_of(folder)
    batches = []
    for request in training_requests(9, 10, 72):
        images, labels = [], []
        for example in request.examples:
            ((encoded, label),) = delivery.source.read(delivery.source.items([example]))
            images.append(delivery.picture(encoded, request.epoch, int(example)))
            labels.append(label)
        visit = np.stack([np.full(10, request.epoch), request.examples], axis=1).astype(np.int32)
        batches.append(
            {"image": np.stack(images), "label": np.array(labels, np.int32), "mask": request.mask, "visit": visit}
        )
    return batches


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_batches_are_the_same_for_every_number_of_workers(folder, expected, workers):
    assert_equal(batches_of(delivery_of(folder), training_requests(9, 10, 72), 10, workers), expected)


def test_a_stream_that_starts_later_goes_on_with_the_same_batches(folder, expected):
    requests = list(training_requests(9, 10, 72))[5:]
    assert_equal(batches_of(delivery_of(folder), requests, 10, 1), expected[5:])


def test_two_processes_see_the_batches_of_one(folder, expected):
    halves = [
        batches_of(delivery_of(folder), training_requests(9, 10, 72, process_index=index, process_count=2), 5, 0)
        for index in range(2)
    ]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_equal(joined, expected)


def test_crops_differ_between_epochs_and_seeds(folder, expected):
    def pixels(batches, epoch):
        found = {}
        for batch in batches:
            for image, (its_epoch, example) in zip(batch["image"], batch["visit"], strict=True):
                if its_epoch == epoch:
                    found[int(example)] = image.tobytes()
        return found

    first, second = pixels(expected, 0), pixels(expected, 1)
    common = first.keys() & second.keys()
    assert len(first) == 70 and len(common) > 10
    assert sum(first[example] == second[example] for example in common) == 0
    other = dataclasses.replace(delivery_of(folder), seed=6)
    changed = pixels(batches_of(other, training_requests(7, 10, 72), 10, 0), 0)
    assert sum(first[example] == changed[example] for example in first.keys() & changed.keys()) == 0


def test_the_last_batch_of_an_evaluation_is_filled_up_with_nothing(folder):
    delivery = delivery_of(folder, "test", crop="center")
    requests = [Request(0, *batch) for batch in evaluation_batches(18, 7)]
    batches = batches_of(delivery, requests, 7, 1)
    assert [batch["mask"].sum() for batch in batches] == [7, 7, 4]
    assert not batches[-1]["image"][4:].any() and batches[-1]["image"][:4].any((1, 2, 3)).all()
    assert np.concatenate([batch["visit"][:, 1] for batch in batches])[:18].tolist() == list(range(18))


def test_a_batch_of_many_chunks_is_in_order(folder):
    delivery = delivery_of(folder, crop="center")
    size = 2 * CHUNK + 7
    (batch,) = batches_of(delivery, training_requests(1, size, 72), size, 2)
    for row in (0, CHUNK - 1, CHUNK, 2 * CHUNK, size - 1):
        example = int(batch["visit"][row, 1])
        ((encoded, label),) = delivery.source.read(delivery.source.items([example]))
        np.testing.assert_array_equal(batch["image"][row], delivery.picture(encoded, 0, example))
        assert batch["label"][row] == label


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_named_masked_and_black(folder, tmp_path, workers):
    path = write_folder(tmp_path / "bad", 10)
    victim = path / "temple" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:900])
    (path / "flower" / "4.jpg").write_bytes(b"")
    source = open_source(f"folder:{path}", "train+test")
    delivery = Delivery(source, (32, 32, 3), crop="center")
    noted = []
    batches = batches_of(
        delivery, training_requests(3, 10, 30), 10, workers, lambda example, reason: noted.append((example, reason))
    )
    assert sorted((source.describe(example), reason) for example, reason in noted) == [
        (str(path / "flower" / "4.jpg"), "empty file"),
        (str(victim), "truncated"),
    ]
    bad = {example for example, _ in noted}
    for batch in batches:
        for image, mask, (_, example) in zip(batch["image"], batch["mask"], batch["visit"], strict=True):
            assert (mask == 0) == (example in bad) == (not image.any())


def test_what_on_bad_raises_ends_the_stream(folder, tmp_path):
    path = write_folder(tmp_path / "bad", 10)
    for file in path.rglob("*.jpg"):
        file.write_bytes(b"<html>")

    def refuse(example, reason):
        raise UserError(reason)

    delivery = Delivery(open_source(f"folder:{path}", "train"), (32, 32, 3), crop="center")
    with pytest.raises(UserError, match="neither JPEG nor PNG"):
        batches_of(delivery, training_requests(2, 12, 24), 12, 1, refuse)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_death_of_a_process_is_reported_and_not_waited_for(folder, number):
    with Stream({"train": delivery_of(folder)}, batch_sizes={"train": 10}, workers=2) as stream:
        batches = stream.batches("train", training_requests(1000, 10, 72), no_bad)
        next(batches)
        os.kill(stream._workers[0].process.pid, number)
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
    with Stream({"train": delivery_of(folder)}, batch_sizes={"train": 10}, workers=2) as stream:
        batches = stream.batches("train", training_requests(8, 10, 72), no_bad)
        next(batches)
        processes = [worker.process for worker in stream._workers]
        for process in processes:
            wait_until_signals_are_ignored(process)  # it may still be starting
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        assert len(list(batches)) == 7
        batches.close()
    assert [process.poll() for process in processes] == [0, 0]


def test_workers_never_load_jax_or_tensorflow(folder, data_dir):
    digits = Delivery(open_source("digits", "train", str(data_dir)), (8, 8, 1))
    deliveries = {"train": delivery_of(folder), "digits": digits}
    with Stream(deliveries, batch_sizes={"train": 10, "digits": 10}, workers=1) as stream:
        for name in deliveries:
            list(stream.batches(name, training_requests(1, 10, 72), no_bad))
        maps = open(f"/proc/{stream._workers[0].process.pid}/maps").read()  # noqa: PTH123, SIM115
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
    delivery = Delivery(source, (8, 8, 1))
    with pytest.raises(UserError, match=r"cannot read split 'train' of digits in .*prepare it again"):
        batches_of(delivery, training_requests(20, 64, 1438), 64, 1)


def test_a_picture_of_another_size_than_the_set_promises_is_bad(folder):
    delivery = Delivery(open_source(f"folder:{folder}", "train"), (60, 80, 3))
    ((encoded, _),) = delivery.source.read(delivery.source.items([0]))
    shape = pictures.decode(encoded, 3).shape
    if shape == (60, 80, 3):
        pytest.fail("the fixture's first picture has the very size")
    with pytest.raises(pictures.BadPicture, match=f"{shape[1]}x{shape[0]} pixels instead of 80x60"):
        delivery.picture(encoded, 0, 0)
