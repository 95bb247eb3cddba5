"""ONNX models, computed by onnxruntime, give the results of the network that they were exported from."""

import collections
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file

from flaxcnn import Predictor, UserError, create_model, export, list_models, model_info
from flaxcnn.commands.main import main
from flaxcnn.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from flaxcnn.inference import exporting
from flaxcnn.models.network import Network
from flaxcnn.trained.exporting import export_trained
from flaxcnn.training.experiment import make_experiment
from flaxcnn.weights import to_torch
from tests.marks import sampled
from tests.variables import random_images, random_variables, tame_gates

# The operators that the networks need; any other would mean a graph longer than necessary.
OPERATORS = {
    *(
        "Add",
        "AveragePool",
        "Concat",
        "Conv",
        "Div",
        "Einsum",
        "Exp",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "Log",
    ),
    *("MaxPool", "Mul", "Neg", "Pad", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Squeeze", "Sub", "Tanh"),
    "Transpose",
}


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"images": np.asarray(images)})
    return result


def check(path, model, size, channels=3, tolerance=1e-4, **options):
    """Exports a network with random variables; logits of 5 images and of 1 are its own."""
    images = np.asarray(random_images(5, size, size, channels), np.float32)
    variables = tame_gates(random_variables(model, (1, size, size, channels)))
    export(path, model, variables, images.shape[1:], **options)
    expected = np.asarray(jax.jit(lambda images: model.apply(variables, images, train=False))(images))
    assert expected.std() > 0
    tolerance *= np.abs(expected).max()
    for count in (5, 1):
        found = run(path, images[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=tolerance)
    return onnx.load(path)


@pytest.mark.parametrize(
    ("name", "fields", "size", "channels"),
    [
        ("lenet5", {}, 28, 1),
        pytest.param(
            "lenet5", {"activation": "tanh", "pooling": "max", "norm": "batch_norm"}, 19, 2, marks=pytest.mark.slow
        ),
        ("lenet5", {"num_classes": 1, "norm": "batch_norm"}, 12, 1),
        ("lenet5_1998", {}, 33, 1),
        pytest.param("alexnet", {"hidden": 16}, 100, 3, marks=pytest.mark.slow),
        ("alexnet_2012", {"hidden": 16}, 64, 3),
        pytest.param("alexnet_bn", {"hidden": 16}, 67, 3, marks=pytest.mark.slow),
        ("vgg11_bn", {"hidden": 16, "blocks": ((1, 8), (2, 16))}, 28, 3),
        pytest.param("vgg11", {"hidden": 16, "blocks": ((1, 8), (2, 16))}, 37, 1, marks=pytest.mark.slow),
        ("nin_cifar", {}, 31, 3),
        ("resnet18", {"depths": (1, 1), "widths": (8, 16)}, 33, 3),
        ("resnet20", {"depths": (1, 1, 1)}, 17, 3),
        ("resnet20", {"depths": (1, 1), "widths": (1, 1), "stem_features": 1, "num_classes": 0}, 8, 1),
        pytest.param("resnet30", {"depths": (1, 1), "widths": (16, 32)}, 16, 3, marks=pytest.mark.slow),
        ("resnext29_8x64d", {"depths": (1, 1, 1), "widths": (8, 8, 8)}, 16, 3),
        pytest.param("wrn_40_4", {"depths": (1, 1, 1)}, 16, 3, marks=pytest.mark.slow),
        ("densenet40_12", {"depths": (2, 2)}, 17, 3),
        ("densenet121", {"depths": (1, 1), "num_classes": 0}, 32, 3),
        ("regnet_y_400mf", {"stages": ((1, 32, 16), (1, 64, 16))}, 33, 3),
    ],
)
def test_logits_of_every_family(tmp_path, name, fields, size, channels):
    model = check(tmp_path / "network.onnx", create_model(name, **fields), size, channels)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= OPERATORS


@pytest.mark.parametrize("name", sampled(list_models(), every=9))
def test_logits_of_every_network(tmp_path, name):
    size, channels = max(model_info(name).minimum_size, 32), model_info(name).input_shape[2]
    model = check(tmp_path / "network.onnx", create_model(name), size, channels)
    assert {node.op_type for node in model.graph.node} <= OPERATORS


def test_the_graph_is_one_that_an_engineer_would_draw(tmp_path):
    model = check(tmp_path / "lenet.onnx", create_model("lenet5", norm="batch_norm"), 28, 1)
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    assert kinds == {"Transpose": 1, "Conv": 2, "AveragePool": 2, "Sigmoid": 4, "Flatten": 1, "Gemm": 3}
    (images,), (logits,) = model.graph.input, model.graph.output
    dimensions = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert images.name == "images" and dimensions == ["batch", 28, 28, 1]
    dimensions = [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim]
    assert logits.name == "logits" and dimensions == ["batch", 10]
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    assert shapes["conv2/conv/kernel"] == (16, 6, 5, 5) and shapes["conv2/conv/bias"] == (16,)
    assert shapes["fc1/kernel"] == (400, 120) and len(shapes) == 10
    assert [opset.version for opset in model.opset_import] == [18]

    model = check(tmp_path / "resnet.onnx", create_model("resnet18", depths=(1, 1), widths=(8, 16)), 32)
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    # A stem of one convolution and two blocks of two, whose shortcuts have one each.
    convolutions = {"Conv": 7, "Relu": 5, "MaxPool": 1, "Add": 2}
    assert kinds == convolutions | {"Transpose": 1, "GlobalAveragePool": 1, "Squeeze": 1, "Gemm": 1}


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        ({"norm": "group_norm"}, 1e-4),
        ({"norm": "layer_norm"}, 1e-4),
        ({"norm": None}, 1e-4),
        ({"dtype": "bfloat16"}, 0.05),
        ({"dtype": "float16", "param_dtype": "float16"}, 0.01),
        ({"remat": True}, 1e-4),
    ],
)
def test_other_norms_and_half_precision_which_becomes_single(tmp_path, fields, tolerance):
    model = create_model("resnet20", depths=(1, 1), widths=(16, 32), **fields)
    graph = check(tmp_path / "network.onnx", model, 12, tolerance=tolerance).graph
    assert {weight.data_type for weight in graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.silu, nn.elu, lambda x: nn.gelu(x, approximate=False)])
def test_other_activations(tmp_path, activation):
    check(tmp_path / "network.onnx", create_model("lenet5", activation=activation), 12, 1)


def experiment_of(**settings):
    model = ModelConfig(name="lenet5")
    data = DataConfig(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), **settings.pop("data", {}))
    evaluation = EvaluationConfig(**settings)
    config = TrainConfig(model=model, data=data, evaluation=evaluation)
    return make_experiment(config, ("cat", "dog", "Käfer"), (14, 18, 3))


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"image_size": 16}},
        pytest.param({"data": {"image_size": 16, "resize": "bicubic"}, "views": "flip"}, marks=pytest.mark.slow),
        pytest.param({"data": {"image_size": 20, "resize": "nearest"}}, marks=pytest.mark.slow),
        pytest.param({"data": {"image_size": 20, "resize": "pad"}, "views": "flip"}, marks=pytest.mark.slow),
        pytest.param({"data": {"image_size": 16}, "shorter_side": 20, "views": "ten_crop"}, marks=pytest.mark.slow),
        {},
    ],
)
def test_a_run_becomes_uint8_images_to_probabilities(tmp_path, settings):
    experiment = experiment_of(**settings)
    state = experiment.create_state(experiment.optimizer())
    export_trained(experiment, state, tmp_path / "run.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 14, 18, 3), np.uint8)
    predict = Predictor(experiment.model, state.variables, batch_size=5, preprocess=experiment.views)
    expected = predict.probabilities(images)
    for count in (5, 1):
        np.testing.assert_allclose(run(tmp_path / "run.onnx", images[:count]), expected[:count], atol=1e-5)
    about = json.loads((tmp_path / "run.onnx.json").read_text())
    assert about["image_shape"] == [14, 18, 3] and about["dtype"] == "uint8"
    assert about["class_names"] == ["cat", "dog", "Käfer"]
    model = onnx.load(tmp_path / "run.onnx")
    assert [value.name for value in model.graph.output] == ["probabilities"]
    assert model.graph.node[-1].op_type == "Softmax"


def test_weights_beyond_2_gib_come_into_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_LARGEST", 1000)
    check(tmp_path / "network.onnx", create_model("lenet5"), 28, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "network.onnx.data"]
    assert (tmp_path / "network.onnx").stat().st_size < 20_000 < (tmp_path / "network.onnx.data").stat().st_size


def lenet():
    model = create_model("lenet5")
    return model, random_variables(model, (1, 28, 28, 1))


class Sorting(Network):
    def forward(self, images, train):
        return {}, jnp.sort(images.reshape(images.shape[0], -1))


class Strange(Network):
    @nn.compact
    def forward(self, images, train):
        return {}, nn.ConvTranspose(2, (3, 3), (2, 2))(images).mean(axis=(1, 2))


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "there.onnx").write_text("mine")
    (tmp_path / "new.onnx.data").write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"there\.onnx exists already"):
        export(tmp_path / "there.onnx", *lenet(), (28, 28, 1))
    with pytest.raises(UserError, match=r"new\.onnx\.data exists already"):
        export(tmp_path / "new.onnx", *lenet(), (28, 28, 1))
    with pytest.raises(UserError, match="do not fit the model and images of 32x32x1"):
        export(tmp_path / "a.onnx", *lenet(), (32, 32, 1))
    with pytest.raises(UserError, match="images of one size; give height and width"):
        export(tmp_path / "a.onnx", *lenet(), (None, 28, 1))
    with pytest.raises(UserError, match="Sorting computes sort"):
        export(tmp_path / "a.onnx", Sorting(), {}, (4, 4, 1))
    with pytest.raises(UserError, match="Strange has a transposed convolution"):
        strange = Strange()
        export(tmp_path / "a.onnx", strange, random_variables(strange, (1, 4, 4, 1)), (4, 4, 1))
    with pytest.raises(UserError, match="pip install onnx"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        export(tmp_path / "a.onnx", *lenet(), (28, 28, 1))
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_by_name(tmp_path, capsys):
    path = tmp_path / "lenet.onnx"
    assert main(["export", "lenet5", str(path), "--weights", "random"]) == 0
    assert "float32 images of 28x28x1 to the logits of 10 classes" in capsys.readouterr().out
    assert run(path, np.zeros((3, 28, 28, 1), np.float32)).shape == (3, 10)
    assert main(["export", "lenet5", str(tmp_path / "a.onnx"), "--weights=random", "--image-size=20x24"]) == 0
    assert run(tmp_path / "a.onnx", np.zeros((2, 20, 24, 1), np.float32)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5, 1000])
def test_a_network_by_name_with_weights_of_a_file(tmp_path, capsys, classes):
    model = create_model("resnet18", num_classes=classes)
    variables = random_variables(model, (1, 32, 32, 3))
    save_file(to_torch("resnet18", variables, num_classes=classes), tmp_path / "w.safetensors")
    path = tmp_path / "network.onnx"
    arguments = ["--weights", str(tmp_path / "w.safetensors"), "--image-size", "32"]
    assert main(["export", "resnet18", str(path), *arguments]) == 0
    assert "normalized by mean (0.485, 0.456, 0.406)" in capsys.readouterr().out
    images = np.asarray(random_images(2, 32, 32, 3), np.float32)
    expected = np.asarray(jax.jit(lambda images: model.apply(variables, images, train=False))(images))
    np.testing.assert_allclose(run(path, images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    names = tmp_path / "network.onnx.json"
    assert names.exists() == (classes == 1000)
    if classes == 1000:  # of other classes the names are not known
        assert json.loads(names.read_text())["class_names"][207] == "golden retriever"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet5", "FILE"], "no weights of lenet5 are published"),
        (["resnet5", "FILE"], "resnet5 holds no run, and no network has that name; did you mean"),
        (["nowhere", "FILE", "--weights", "random"], "nowhere holds no run"),
        (["resnet18", "FILE", "--averaged"], "--averaged are for work directories"),
        (["resnet18", "FILE", "--checkpoint", "best"], "are for work directories"),
        (["resnet18", "FILE", "--weights", "nofile"], "nofile is neither a file nor published weights of resnet18"),
        (["FOLDER", "FILE", "--weights", "random"], "are for networks by name"),
        (["alexnet", "FILE", "--weights", "random", "--image-size", "20"], "at least 63x63 pixels"),
        (["lenet5", "FILE", "--weights", "random", "--image-size", "28y"], "'28y' is not a size in pixels"),
        (["lenet5", "FILE", "--weights", "random", "--image-size", "any"], "images of one size"),
    ],
)
def test_a_slip_is_one_line(tmp_path, capsys, arguments, message):
    words = {"FILE": str(tmp_path / "a.onnx"), "FOLDER": str(tmp_path)}
    assert main(["export", *(words.get(word, word) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert list(tmp_path.iterdir()) == []
