"""Records on disk and the run on the screen."""

import io
import json
import math
import re
import struct
import time

import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event

from flaxcnn.runs.recorder import MetricsLog, Recorder, read_metrics


def write(workdir, steps, start_step=0):
    log = MetricsLog(workdir, start_step=start_step)
    for step in steps:
        log.write("epoch", step, step / 10, {"loss": 1.0 / step, "accuracy": step / 100})
    log.close()


def test_records_are_read_back_exactly(tmp_path):
    write(tmp_path, [3, 7])
    assert read_metrics(tmp_path) == [
        {"kind": "epoch", "step": step, "epoch": step / 10, "loss": 1.0 / step, "accuracy": step / 100}
        for step in (3, 7)
    ]


def test_continuing_drops_what_was_written_after_the_checkpoint(tmp_path):
    write(tmp_path, [10, 20, 30, 40])
    write(tmp_path, [30, 40, 50], start_step=20)
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 30, 40, 50]


def test_starting_anew_drops_everything(tmp_path):
    write(tmp_path, [10, 20])
    write(tmp_path, [5])
    assert [record["step"] for record in read_metrics(tmp_path)] == [5]


@pytest.mark.parametrize("cut", [2, 20, 60])
def test_a_record_cut_off_by_a_crash_is_left_out(tmp_path, cut):
    write(tmp_path, [10, 20, 30])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20]
    write(tmp_path, [30], start_step=20)
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 30]


def events(path):
    """Reads an event file by its framing: length, checksum, event, checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path, [4, 8])
    (path,) = tmp_path.glob("events.out.tfevents*")
    found = [(e.step, v.tag, v.simple_value) for e in events(path) for v in e.summary.value]
    assert found == [
        (step, f"epoch/{name}", pytest.approx(value))
        for step in (4, 8)
        for name, value in (("loss", 1 / step), ("accuracy", step / 100))
    ]


def show(tmp_path, terminal, skipped=0, left_out=0):
    console = rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=100)
    sizes = {"start": 0, "total": 40, "per_epoch": 20, "batch_size": 64}
    with Recorder(tmp_path, console, **sizes) as recorder:
        for step in range(1, 21):
            recorder.tick(step)
        means = {"loss": 1.5, "accuracy": 0.25, "skipped": skipped, "left_out": left_out}
        recorder.interval(20, means, learning_rate=0.1)
        recorder._bar.refresh()
        recorder.test("test", 20, {"accuracy": 0.5})
        recorder.epoch(20, means, {"test": 0.5})
    return console.file.getvalue()


def test_without_a_terminal_an_epoch_is_one_plain_line(tmp_path):
    (line,) = show(tmp_path, terminal=False).splitlines()
    assert line.startswith("epoch 1/2  loss 1.5000  accuracy 0.2500  test accuracy 0.5000  ")
    assert "images/s  eta 0:00:0" in line


def test_on_a_terminal_a_bar_moves_with_the_numbers(tmp_path):
    text = show(tmp_path, terminal=True)
    assert "\x1b[" in text and "━" in text
    assert "loss 1.5000  accuracy 0.2500" in text


def test_skipped_steps_are_said(tmp_path):
    assert "test accuracy 0.5000  3 steps skipped  " in show(tmp_path, terminal=False, skipped=3)


def test_pictures_left_out_are_said(tmp_path):
    assert "test accuracy 0.5000  1,234 left out  " in show(tmp_path, terminal=False, left_out=1234)


def test_the_share_of_the_time_without_data_is_recorded_and_shown(tmp_path):
    """0.1 of 0.2 seconds, and in the next interval none."""
    console = rich.console.Console(file=io.StringIO(), width=100)
    means = {"loss": 1.0, "accuracy": 0.0, "skipped": 0, "left_out": 0}
    with Recorder(tmp_path, console, start=0, total=2, per_epoch=1, batch_size=10) as recorder:
        for step in (1, 2):
            recorder.tick(step)
            time.sleep(0.2)
            recorder.measure(step, waited=0.1)
            recorder.interval(step, means, learning_rate=0.1)
            recorder.epoch(step, means, {})
    first, second = (r["waiting_for_data"] for r in read_metrics(tmp_path) if r["kind"] == "interval")
    assert 0.2 < first <= 0.5 and second == 0
    lines = console.file.getvalue().splitlines()
    assert re.search(r"images/s  \d\d% waiting for data  eta", lines[0]) and "waiting" not in lines[1]


def test_the_speed_leaves_evaluations_out(tmp_path):
    console = rich.console.Console(file=io.StringIO())
    with Recorder(tmp_path, console, start=0, total=3, per_epoch=3, batch_size=10) as recorder:
        recorder.tick(1)
        recorder.measure(1)
        time.sleep(0.3)
        recorder.tick(2)
        time.sleep(0.1)
        recorder.tick(3)
        recorder.measure(3)
        recorder.interval(3, {"loss": 1.0, "accuracy": 0.0}, learning_rate=0.1)
    record = read_metrics(tmp_path)[-1]
    assert 100 < record["images_per_second"] <= 200  # 20 images in 0.1 s, not 30 in 0.4 s


def test_what_is_not_a_number_is_null_in_the_file(tmp_path):
    log = MetricsLog(tmp_path, start_step=0)
    log.write("interval", 1, 0.1, {"loss": math.nan, "accuracy": math.inf, "skipped": 2})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None and '"skipped": 2' in text


def test_a_process_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Recorder(None, rich.console.Console(quiet=True), start=0, total=1, per_epoch=1, batch_size=10) as recorder:
        recorder.tick(1)
        recorder.interval(1, {"loss": 1.0, "accuracy": 0.0, "skipped": 0}, learning_rate=0.1)
        recorder.test("test", 1, {"accuracy": 0.0})
        recorder.epoch(1, {"loss": 1.0, "accuracy": 0.0, "skipped": 0, "left_out": 0}, {})
        recorder.flush()
    assert not list(tmp_path.iterdir())
