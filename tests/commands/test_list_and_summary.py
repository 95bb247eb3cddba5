"""flaxcnn list and flaxcnn summary."""

import re

from flaxcnn import list_models
from tests.verbs import run


def test_list_shows_what_matches_a_wildcard_or_a_part(capsys):
    code, out, _ = run(capsys, "list", "resnet*")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert code == 0 and names == list_models("resnet*") and len(names) == 11
    assert "69.758 / 89.078" in out and "8.75 % error on CIFAR-10" in out
    assert run(capsys, "list", "googlenet_p")[1].splitlines()[1].startswith("googlenet_paper  224x224x3")
    assert len(run(capsys, "list")[1].splitlines()) == 1 + len(list_models())


def test_summary_shows_each_layer_and_the_sums(capsys):
    code, out, _ = run(capsys, "summary", "alexnet_2012", "--batch", 4)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    # Two groups: each kernel of conv2 sees 48 of the 96 channels. 27 * 27 positions, 5 * 5 * 48 * 256 each.
    macs = f"{4 * 27 * 27 * 5 * 5 * 48 * 256:,}"
    assert ["Conv", "5x5", "g2", "4x27x27x256", "307,456", macs, "2.8", "MiB", "conv2/conv"] in rows
    assert ["parameters", "60,965,224", "in", "16", "arrays", "(232.6", "MiB)"] in rows
    small = run(capsys, "summary", "resnet50", "--image-size", 64)[1]
    assert "input 1x64x64x3" in small and re.search(
        r"BatchNorm +1x2x2x2048 +4,096 +32.0 KiB +stage4_block3/conv3/norm", small
    )
    assert "running statistics  53,120" in small
