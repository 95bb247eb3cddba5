"""`python -m flaxcnn summary` and `list`: what they show, and that a slip is one line."""

import re
import time

import pytest

from flaxcnn import create_model, list_models, model_info, models
from flaxcnn.commands.main import main
from flaxcnn.models.cost import measure


def shown(capsys, *arguments):
    """Rows of a summary as (layer, output shape), and the rest of what is printed."""
    assert main(["summary", *arguments]) == 0
    out = capsys.readouterr().out
    table = out.split("\n\n")[1].splitlines()[1:]
    return [re.match(r"(.*?) {2,}(\d+(?:x\d+)+) ", row).groups() for row in table], out


def test_lenet_is_shown_as_taught(capsys):
    # The layers that d2l.ai, section 7.6, prints for its LeNet, pixels before channels.
    assert shown(capsys, "lenet5")[0] == [
        ("Conv 5x5", "1x28x28x6"),
        ("Sigmoid", "1x28x28x6"),
        ("AvgPool 2x2/2", "1x14x14x6"),
        ("Conv 5x5", "1x10x10x16"),
        ("Sigmoid", "1x10x10x16"),
        ("AvgPool 2x2/2", "1x5x5x16"),
        ("Flatten", "1x400"),
        ("Dense", "1x120"),
        ("Sigmoid", "1x120"),
        ("Dense", "1x84"),
        ("Sigmoid", "1x84"),
        ("Dense", "1x10"),
    ]


def test_fields_classes_channels_and_sizes_are_those_asked_for(capsys):
    rows, out = shown(capsys, "vgg11", "--channels=1", "--num-classes=10", "--set", "norm=batch_norm")
    assert rows[:4] == [
        ("Conv 3x3", "1x224x224x64"),
        ("BatchNorm", "1x224x224x64"),
        ("ReLU", "1x224x224x64"),
        ("MaxPool 2x2/2", "1x112x112x64"),
    ]
    assert rows[-8:] == [
        ("Flatten", "1x25088"),
        *[("Dense", "1x4096"), ("ReLU", "1x4096"), ("Dropout", "1x4096")] * 2,
        ("Dense", "1x10"),
    ]
    assert "128,811,658 in 38 arrays" in out  # 128,806,154 of d2l.ai's network with one channel, and its norms
    rows, _ = shown(capsys, "vgg11", "--image-size", "64x96", "--set", "blocks=[[1,16],[1,32]]")
    assert ("MaxPool 2x2/2", "1x16x24x32") in rows and ("AdaptiveAvgPool", "1x7x7x32") in rows
    rows, out = shown(capsys, "resnet20", "--set", "depths=1,1,1", "--set=dtype=bfloat16", "--batch=2")
    assert [kind for kind, _ in rows].count("Add") == 3 and "bfloat16" in out
    assert ("GlobalAvgPool", "2x64") in rows


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["alexnet_2012", "--image-size=64"],
            [("Conv 11x11/4", "1x15x15x96"), ("LocalResponseNorm", "1x15x15x96")],
        ),
        (["alexnet_2012", "--image-size=64"], [("Conv 5x5 g2", "1x7x7x256")]),
        (["googlenet", "--image-size=32"], [("MaxPool 3x3", "1x4x4x192"), ("Concat", "1x4x4x256")]),
        (["densenet40_12", "--set", "depths=2,2"], [("Concat", "1x32x32x28"), ("AvgPool 2x2/2", "1x16x16x40")]),
        (["densenet40_12", "--set", "depths=1,", "--set", "dropout_rate=0.2"], [("Dropout", "1x32x32x12")]),
        (
            ["lenet5", "--set", "activation=gelu", "--set", "pooling=max"],
            [("GELU", "1x120"), ("MaxPool 2x2/2", "1x5x5x16")],
        ),
        (["lenet5", "--set", "activation=tanh"], [("Tanh", "1x84")]),
        (["lenet5_1998"], [("PartialConvolution", "1x10x10x16"), ("SquaredDistance", "1x10")]),
        (["regnet_y_400mf", "--set", "stages=[[1,32,16]]"], [("Sigmoid", "1x1x1x32"), ("Scale", "1x56x56x32")]),
        (["resnet18", "--num-classes=0", "--image-size=32"], [("GlobalAvgPool", "1x512")]),
        (["resnet18", "--set", "norm=group_norm", "--set", "depths=[1,1,1,1]"], [("GroupNorm", "1x7x7x512")]),
        (["googlenet", "--set", "aux_logits=true", "--image-size=32"], [("Dense", "1x1000")]),
    ],
)
def test_functions_are_layers_too(capsys, arguments, expected):
    rows, _ = shown(capsys, *arguments)
    assert set(expected) <= set(rows)
    # Nothing that only computes with a layer's own numbers is one.
    assert not {kind for kind, _ in rows} & {"Mul", "Pad", "Exp", "Name"}


def test_a_network_ends_in_what_it_returns_and_remat_changes_nothing():
    for name, fields in (("nin_cifar", {}), ("wrn_40_4", {"depths": (1, 1, 1), "dropout_rate": 0.3})):
        plain, remat = (measure(create_model(name, remat=each, **fields), (32, 32, 3)) for each in (False, True))
        assert plain == remat and plain.layers[-1].output_shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg11", "--set", "nrm=none"], "vgg11 has no field 'nrm'; did you mean norm"),
        (["vgg11", "--set", "norm=bn"], "vgg11 has no norm 'bn'; write one of batch_norm"),
        (["vgg11", "--set", "norm"], "'norm' is not FIELD=VALUE"),
        (["vgg11", "--set", "=1"], "'=1' is not FIELD=VALUE"),
        (["vgg11", "--set", "name=x"], "'name=x' is not FIELD=VALUE"),
        (["resnet18", "--set", "depths=1,1"], "takes a depth and a width a stage"),
        (
            ["resnet18", "--set", "depths=1,x"],
            "depths of resnet18 takes lists of whole numbers (such as depths=1,1,1), got '1,x'",
        ),
        (["resnet18", "--set", "dtype=int8"], "'int8' is not a floating dtype"),
        (["densenet121", "--set", "compression=1e999"], "compression of densenet121 takes a number, got inf"),
        (["alexnet", "--set", "relu_after=true,maybe"], "relu_after of alexnet takes values of true or false"),
        (["googlenet", "--channels=1", "--set", "transform_input=true"], "needs images of 3 channels, got 1"),
        (["vgg11", "--num-classes=-1"], "'-1' is not a whole number"),
        (["vgg11", "--set", "num_classes=2.5"], "num_classes of vgg11 takes a whole number, got 2.5"),
        (["vgg11", "--image-size=40x20"], "at least 32x32 pixels, got 40x20"),
        (["vgg11", "--image-size=40x"], "'40x' is not a size"),
        (["vgg11", "--image-size=1x2x3"], "'1x2x3' is not a size"),
        (["vgg11", "--channels=0"], "'0' is not a whole number"),
    ],
)
def test_a_slip_is_one_line(capsys, arguments, message):
    assert main(["summary", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and re.match(r"error: [^\n]*\n\Z", captured.err) and message in captured.err


def test_list_has_parameters_and_multiply_adds_of_all_at_once(capsys, monkeypatch):
    monkeypatch.setattr(models.registry, "measure", None)  # tracing all of them takes a minute
    start = time.perf_counter()
    assert main(["list"]) == 0
    assert time.perf_counter() - start < 5
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == list_models()
    assert ["resnet50", "224x224x3", "25,557,032", "4.089"] in [row[:4] for row in rows]
    assert ["lenet5", "28x28x1", "61,706", "0.00042"] in [row[:4] for row in rows]


def counts_agree(name):
    info = model_info(name)
    cost = info.cost
    assert (info.parameters, info.macs, info.activations) == (cost.parameters, cost.macs, cost.activations)


@pytest.mark.parametrize("name", ["lenet5", "alexnet_2012", "nin", "resnet18", "regnet_x_400mf"])
def test_recorded_counts_are_those_measured(name):
    counts_agree(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_recorded_counts_are_those_measured_of_every_network(name):
    counts_agree(name)


def test_a_network_of_ones_own_is_measured(monkeypatch):
    registry = models.registry
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    registry.register(
        "mine", type(create_model("lenet5")), summary="", paper="", input_shape=(28, 28, 1), num_classes=2
    )
    assert model_info("mine").parameters == 61_706 - 8 * 85
