"""A work directory of an earlier version continues: data/begun.tar.xz, 20 steps by revision 2f55523."""

import io
import tarfile

import pytest
import rich.console

from flaxcnn.config.recipes import load_config
from flaxcnn.runs.recorder import read_metrics
from flaxcnn.training import loop
from tests.conftest import ROOT


def test_a_run_of_an_earlier_version_continues(data_dir, tmp_path):
    with tarfile.open(ROOT / "tests" / "runs" / "data" / "begun.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    config = load_config(ROOT / "configs" / "digits_lenet5.py")
    config.data.data_dir, config.data.image_size, config.duration = str(data_dir), 12, "30 steps"
    config.model.options.norm, config.parallel.strategy, config.schedule.name = "batch_norm", "jit", "constant"
    console = rich.console.Console(file=io.StringIO(), width=100)
    result = loop.fit(config, tmp_path, console=console)
    assert "after step 20 of 30" in console.file.getvalue()
    # What that revision itself reached.
    assert result.loss == pytest.approx(1.0107404023, rel=1e-4) and result.accuracy == pytest.approx(212 / 359)
    (epoch,) = (record for record in read_metrics(tmp_path) if record["kind"] == "epoch" and record["step"] == 30)
    assert epoch["loss"] == pytest.approx(1.5026313782, rel=1e-5)
