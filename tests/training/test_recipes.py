"""The recipes: what they say is what they do, they build what they name, and they take steps on images."""

import ast
import dataclasses
import io
import json
import math
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
import sklearn.datasets

from flaxcnn import create_model
from flaxcnn.commands import train_flags
from flaxcnn.commands.main import main
from flaxcnn.config import to_steps
from flaxcnn.config.geometry import EvaluationGeometry
from flaxcnn.config.leaves import get_leaf
from flaxcnn.config.recipes import load_config
from flaxcnn.models import googlenet, model_info
from flaxcnn.runs.recorder import read_metrics
from flaxcnn.training import loop, setup
from flaxcnn.training.experiment import check_config, make_experiment
from flaxcnn.training.optimizer import make_schedule
from tests.conftest import ROOT
from tests.images import ArraySource, piece
from tests.marks import sampled

RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py"))
# Networks of their published size, for an accelerator; the others are small and for a CPU.
PUBLISHED = [
    path
    for path in RECIPES
    if path.split("/")[1] in ("imagenet", "cifar10", "cifar100", "svhn")
    or path.endswith(("resnet18.py", "wrn_28_10.py"))
]
OWN_IMAGES = "configs/folder.py"
# torchvision's recipe of 2021 with the networks of other recipes.
MODERN = [path for path in RECIPES if path.endswith("_modern.py")]
SMALL = sorted(set(RECIPES) - {*PUBLISHED, OWN_IMAGES})
FAMILIES = [path for path in SMALL if path.startswith("configs/fashion_mnist/")]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set as TFDS documents it."""

    image_shape: tuple
    classes: int
    sizes: dict


DATA_SETS = {
    "imagenet2012": DataSet((None, None, 3), 1000, {"train": 1_281_167, "validation": 50_000}),
    "cifar10": DataSet((32, 32, 3), 10, {"train": 50_000, "test": 10_000}),
    "cifar100": DataSet((32, 32, 3), 100, {"train": 50_000, "test": 10_000}),
    "svhn_cropped": DataSet((32, 32, 3), 10, {"train": 73_257, "test": 26_032, "extra": 531_131}),
    "fashion_mnist": DataSet((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "mnist": DataSet((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "digits": DataSet((8, 8, 1), 10, {"train": 1_438, "test": 359}),
    "folder:PATH": DataSet((None, None, 3), 2, {"train": 400, "test": 100}),
}


def load(path):
    config = load_config(ROOT / path)
    return config, DATA_SETS[config.data.name]


def docstring(path):
    return ast.get_docstring(ast.parse((ROOT / path).read_text()))


def steps_per_epoch(config, data_set):
    return sum(data_set.sizes[split] for split in config.data.train_split.split("+")) // config.batch_size


def experiment_of(path):
    """What the recipe describes; its network is traced if evaluation shows another size than training."""
    config, data_set = load(path)
    height, width, channels = data_set.image_shape
    size = EvaluationGeometry.of(config.data, config.evaluation).decode_size
    shape = (height or size, width or size, channels)
    return make_experiment(config, tuple(map(str, range(data_set.classes))), shape)


def test_every_folder_has_its_recipes():
    assert {path.split("/")[1] for path in PUBLISHED} == {
        "imagenet",
        "cifar10",
        "cifar100",
        "svhn",
        "fashion_mnist",
    }
    assert len(SMALL) == 14 and len(FAMILIES) == 11


@pytest.mark.parametrize("path", RECIPES)
def test_the_commands_of_a_docstring_prepare_and_train_this_recipe(path, monkeypatch):
    config, _ = load(path)
    monkeypatch.chdir(ROOT)
    prepared, trained = [], []
    monkeypatch.setattr("flaxcnn.commands.prepare._prepare", prepared.append)
    monkeypatch.setattr("flaxcnn.commands.train.main", lambda argv: trained.append(argv) or 0)
    for line in docstring(path).splitlines():
        if line.startswith("    python"):
            _, *words = shlex.split(line, comments=True)
            program = words.pop(0)
            if program == "-m":
                assert words.pop(0) == "flaxcnn" and main(words) == 0
            else:
                assert program == "train.py"
                trained.append([program, *words])
    (command,) = trained
    found = train_flags.parse(command, ROOT / "configs" / "digits_lenet5.py").config
    if path == OWN_IMAGES:
        assert found.data.name.startswith("folder:") and not prepared
        found.data.name = config.data.name
    elif config.data.name == "digits":
        assert not prepared
    else:
        (arguments,) = prepared
        assert arguments.name == config.data.name
        assert (arguments.source is not None) == (config.data.name == "imagenet2012")  # TFDS cannot download it
    assert found == config


@pytest.mark.parametrize("path", PUBLISHED)
def test_the_figures_of_a_docstring_are_those_of_the_recipe(path):
    config, _ = load(path)
    text = " ".join(docstring(path).split()).replace(",", "")
    assert re.search(rf"\b{config.batch_size}\b", text) and re.search(rf"\b{config.duration}\b", text)
    for devices, images in re.findall(r"(\d+) GPUs with (\d+) images each", text):
        assert int(devices) * int(images) == config.batch_size
    for crop, side in re.findall(r"of (\d+) from (\d+) pixels", text)[:1]:
        assert int(crop) == (config.evaluation.image_size or config.data.image_size)
        assert int(side) == config.evaluation.shorter_side


@pytest.mark.parametrize("path", [path for path in PUBLISHED if "--config." in docstring(path)])
def test_every_flag_and_file_that_a_docstring_names_works(path):
    text = docstring(path)
    for other in re.findall(r"configs/\w+/\w+\.py", text):
        assert other in RECIPES
    for flag in re.findall(r"--config\.\S+?=[\w.]+", text):
        command = train_flags.parse(["train.py", f"--config={ROOT / path}", flag.rstrip(".")], ROOT / path)
        check_config(command.config)
        leaf, value = flag.removeprefix("--config.").rstrip(".").split("=")
        before, after = load(path)[0], command.config
        if leaf.startswith("model.options."):
            name = leaf.removeprefix("model.options.")
            assert str(after.model.options[name]) == value and name not in before.model.options
        else:
            assert str(get_leaf(after, leaf)) == value != str(get_leaf(before, leaf))


@pytest.mark.parametrize("path", RECIPES)
def test_durations_fit_into_the_run(path):
    config, data_set = load(path)
    check_config(config)
    schedule, per_epoch = config.schedule, steps_per_epoch(config, data_set)
    total = to_steps(config.duration, per_epoch)
    assert total >= per_epoch
    assert to_steps(schedule.warmup, per_epoch) <= total / 4
    milestones = [to_steps(milestone, per_epoch) for milestone in schedule.milestones]
    assert bool(milestones) == (schedule.name == "multi_step")
    assert milestones == sorted(set(milestones)) and all(0 < step < total for step in milestones)
    if schedule.name == "step":
        assert to_steps(schedule.every, per_epoch) < total
    if schedule.name == "plateau":
        evaluations = total // to_steps(config.evaluation.every, per_epoch)
        assert evaluations > 3 * schedule.patience  # the papers' rates fall three times
    assert config.batch_size % 8 == 0 or config.batch_size == 4
    assert config.data.test_split in data_set.sizes


# (batch, learning rate, decay of the weights, steps), as the papers or their code have them.
STATED = {
    "imagenet/alexnet": (256, 0.01, 1e-4, 90 * 1_281_167 / 256),
    "imagenet/alexnet_2012": (128, 0.01, 5e-4, 90 * 1_281_167 / 128),
    "imagenet/vgg16": (256, 0.01, 5e-4, 370_000),
    "imagenet/nin": (64, 0.01, 5e-4, 450_000),
    "imagenet/googlenet_paper": (32, 0.01, 2e-4, 10_000_000),
    "imagenet/googlenet": (32, 0.045, 2e-4 / 5, 6_000_000),
    "imagenet/resnet34": (256, 0.1, 1e-4, 600_000),
    "imagenet/resnet50": (256, 0.1, 1e-4, 90 * 1_281_167 / 256),
    "imagenet/resnext50_32x4d": (256, 0.1, 1e-4, 100 * 1_281_167 / 256),
    "imagenet/densenet121": (256, 0.1, 1e-4, 90 * 1_281_167 / 256),
    "imagenet/regnet_x_3_2gf": (512, 0.4, 5e-5, 100 * 1_281_167 / 512),
    "imagenet/regnet_y_400mf": (1024, 0.8, 5e-5, 100 * 1_281_167 / 1024),
    "imagenet/resnet50_modern": (1024, 0.5, 2e-5, 600 * 1_281_167 / 1024),
    "cifar10/alexnet_tutorial": (4, 0.001, 0, 7 * 12_500),
    "cifar10/alexnet": (128, 0.01, 5e-4, 90 * 390),
    "cifar10/nin_cifar": (128, 0.1, 1e-4, 120_000),
    "cifar10/resnet20": (128, 0.1, 1e-4, 64_000),
    "cifar10/resnet110": (128, 0.1, 1e-4, 64_000),
    "cifar10/wrn_28_10": (128, 0.1, 5e-4, 200 * 390),
    "cifar10/resnext29_8x64d": (128, 0.1, 5e-4, 300 * 390),
    "cifar10/densenet_bc_100_12": (64, 0.1, 1e-4, 300 * 781),
    "cifar100/nin_cifar": (128, 0.01 * 2, 0.001 * 0.01 / 0.02, 120_000),
    "svhn/wrn_16_8": (128, 0.01, 5e-4, 160 * 604_388 / 128),
    "svhn/densenet_bc_100_12": (64, 0.1, 1e-4, 40 * 604_388 / 64),
    "fashion_mnist/wrn_28_10": (128, 0.1, 5e-4, 300 * 60_000 / 128),
}


@pytest.mark.parametrize("name", STATED)
def test_figures_are_the_stated_ones(name):
    config, data_set = load(f"configs/{name}.py")
    batch_size, rate, decay, steps = STATED[name]
    assert config.batch_size == batch_size
    assert config.optimizer.learning_rate == pytest.approx(rate)
    assert config.optimizer.weight_decay == pytest.approx(decay)
    assert config.optimizer.momentum == 0.9
    assert to_steps(config.duration, steps_per_epoch(config, data_set)) == pytest.approx(steps, rel=2e-3)


# (step, learning rate). An epoch of CIFAR has 390 steps of 128, or 781 of 64; of ImageNet 5,004 of 256.
RATES = {
    "cifar10/resnet20": ((31_999, 0.1), (32_000, 0.01), (48_000, 0.001), (63_999, 0.001)),
    "cifar10/resnet110": ((0, 0.01), (200, 0.055), (400, 0.1), (32_000, 0.01), (48_000, 0.001)),
    "cifar10/wrn_28_10": ((59 * 390, 0.1), (60 * 390, 0.02), (120 * 390, 0.004), (160 * 390, 0.0008)),
    "cifar100/resnext29_8x64d": ((150 * 390 - 1, 0.1), (150 * 390, 0.01), (225 * 390, 0.001)),
    "cifar100/densenet_bc_100_12": ((150 * 781 - 1, 0.1), (150 * 781, 0.01), (225 * 781, 0.001)),
    "svhn/wrn_16_8": ((80 * 4721 - 1, 0.01), (80 * 4721, 0.001), (120 * 4721, 0.0001)),
    "imagenet/resnet50": ((30 * 5004 - 1, 0.1), (30 * 5004, 0.01), (60 * 5004, 0.001)),
    "imagenet/resnext50_32x4d": ((30 * 5004, 0.01), (60 * 5004, 0.001), (90 * 5004, 0.0001)),
    "imagenet/densenet121": ((29 * 5004, 0.1), (30 * 5004, 0.01), (60 * 5004, 0.001)),
    "imagenet/nin": ((199_999, 0.01), (200_000, 0.001), (400_000, 0.0001)),
    "imagenet/googlenet_paper": ((0, 0.01), (8 * 40_036, 0.0096), (80 * 40_036, 0.01 * 0.96**10)),
    "imagenet/googlenet": ((0, 0.045), (320_000, 0.045 * 0.96**5), (320_500, 0.045 * 0.96**6)),
    "imagenet/regnet_y_400mf": ((0, 0.08), (5 * 1251, 0.8), (100 * 1251 - 1, 0)),
    "imagenet/regnet_x_3_2gf": ((0, 0.04), (5 * 2502, 0.4), (100 * 2502 - 1, 0)),
    "imagenet/resnet50_modern": ((0, 0.005), (5 * 1251, 0.5), (302.5 * 1251, 0.25), (600 * 1251 - 1, 0)),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_fall_where_they_should(name):
    config, data_set = load(f"configs/{name}.py")
    per_epoch = steps_per_epoch(config, data_set)
    schedule = make_schedule(
        config.schedule,
        config.optimizer.learning_rate,
        total_steps=to_steps(config.duration, per_epoch),
        steps_per_epoch=per_epoch,
    )
    for step, rate in RATES[name]:
        assert float(schedule(int(step))) == pytest.approx(rate, rel=1e-4, abs=1e-7), step


def test_the_modern_recipes_differ_in_network_and_rate_only():
    assert len(MODERN) == 8
    first = load(MODERN[0])[0]
    for path in MODERN:
        assert path.replace("_modern", "") in RECIPES
        config, _ = load(path)
        has_norm = getattr(create_model(config.model.name), "norm", None) is not None
        assert config.optimizer.learning_rate == (0.5 if has_norm else 0.04)
        config.model, config.optimizer.learning_rate = first.model, first.optimizer.learning_rate
        assert config == first
    # torchvision's script: every 32 steps it keeps 1 - (1 - 0.99998) * devices * images each * 32 / epochs.
    alpha = (1 - 0.99998) * 8 * 128 * 32 / 600
    assert 1 - first.optimizer.ema_decay**32 == pytest.approx(alpha, rel=5e-3)


# Of networks that are no registered variant: as Caffe's model card and the papers have them, or worked out by hand.
PARAMETERS = {
    "imagenet/nin": 7_595_176,
    "imagenet/googlenet_paper": 13_378_280,
    "cifar10/vgg16_bn": 14_728_266 + 2 * (512 * 512 + 512),
    "cifar100/wrn_28_10": 36_536_884,
    "svhn/wrn_16_8": 10_961_370,
    "svhn/densenet_bc_100_12": 769_162,
    "fashion_mnist/resnet18": 11_173_962 - 2 * 9 * 64,
    "fashion_mnist/wrn_28_10": 36_479_194 - 2 * 9 * 16,
}


def with_slow_ones(paths):
    """Marks those slow whose network is traced for another recipe already, at 224 pixels."""
    return [pytest.param(path, marks=pytest.mark.slow) if path in MODERN else path for path in paths]


@pytest.mark.parametrize("path", with_slow_ones(RECIPES))
def test_the_network_is_built_at_its_own_size_with_its_own_classes(path):
    config, data_set = load(path)
    experiment = experiment_of(path)
    model, evaluation = experiment.model, config.evaluation
    assert model.num_classes == data_set.classes
    stored = jax.ShapeDtypeStruct((1, *experiment.image_shape), jnp.uint8)
    views = jax.eval_shape(experiment.views, stored)
    assert len(views) == {"center": 1, "ten_crop": 10}[evaluation.views]
    size = evaluation.image_size or config.data.image_size or data_set.image_shape[0]
    assert {view.shape for view in views} == {(1, size, size, data_set.image_shape[2])}
    images = jnp.zeros((1, *experiment.input_shape))
    logits, variables = jax.eval_shape(
        lambda key: model.init_with_output(key, images, train=False), jax.random.key(0)
    )
    assert logits.shape == (1, data_set.classes) and logits.dtype == jnp.float32
    name = path.removeprefix("configs/").removesuffix(".py")
    if name in PARAMETERS:
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
        assert count == PARAMETERS[name]


# What the fourteen operations of TrivialAugment take to compile, every modern recipe need not take.
WITH_POLICY = "configs/imagenet/resnet50_modern.py"


def shrink(config, monkeypatch):
    """Leaves one layer or block a stage, dense layers of 64, and of large images half the pixels each way.

    Of ResNet and its kin, DenseNet, RegNet, VGG, AlexNet and GoogLeNet, whose steps take a CPU a minute or more to
    compile, and of sizes above 96, at which grouped convolutions take it as long to run; stages, strides, groups,
    heads, norms and dropout stay. Whole networks are traced above, at their own sizes, and run in tests/models.
    """
    info, options = model_info(config.model.name), config.model.options
    values = {**info.fields, **options.to_dict()}
    defaults = {field.name: field.default for field in dataclasses.fields(info.module)}
    if "depths" in defaults:
        options.depths = [1 for _ in values.get("depths", defaults["depths"])]
    if "stages" in defaults:
        options.stages = [[1, *stage[1:]] for stage in values["stages"]]
    if info.module.__name__ == "VGG":
        options.blocks = [[1, channels] for _, channels in values["blocks"]]
    if "hidden" in defaults:
        options.hidden = 64
    kept = ("inception3a", "inception4a", "inception4d", "inception5a")
    monkeypatch.setattr(googlenet, "INCEPTIONS", {name: googlenet.INCEPTIONS[name] for name in kept})
    data, evaluation = config.data, config.evaluation
    if data.image_size and data.image_size > 96:
        data.image_size //= 2
        data.shorter_side = tuple(side // 2 for side in data.shorter_side)
        evaluation.image_size = evaluation.image_size and evaluation.image_size // 2
        evaluation.shorter_side = evaluation.shorter_side and evaluation.shorter_side // 2


def source_of(data_set, count):
    """Pieces of photographs in the shape of the data set's, and labels from the first class to the last."""
    height, width, channels = data_set.image_shape
    images = [
        piece(("temple", "flower")[number % 2], number, height or 260 + 30 * number, width or 340 - 20 * number)
        for number in range(count)
    ]
    labels = np.linspace(0, data_set.classes - 1, count).astype(np.int32)
    class_names = tuple(map(str, range(data_set.classes)))
    return ArraySource(
        [image[..., :channels] for image in images],
        labels,
        class_names=class_names,
        image_shape=data_set.image_shape,
    )


@pytest.fixture
def quickly_compiled():
    """Programs are compiled without most optimisations, in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("path", sampled([*PUBLISHED, OWN_IMAGES], every=9))
def test_every_published_recipe_takes_two_steps_and_evaluates(path, monkeypatch, quickly_compiled, tmp_path):
    config, data_set = load(path)
    shrink(config, monkeypatch)
    if path != WITH_POLICY:
        config.augment.policy = "none"
    # As the batch shrinks, so does the rate (Goyal et al. 2017).
    config.optimizer.learning_rate *= 2 / config.batch_size
    config.batch_size, config.duration, config.evaluation.batch_size = 2, "2 steps", 1
    config.logging.every, config.data.workers, config.parallel.strategy = "1 steps", 0, "jit"
    splits = {config.data.train_split: source_of(data_set, 4), config.data.test_split: source_of(data_set, 2)}
    monkeypatch.setattr(setup, "open_source", lambda name, split, data_dir: splits[split])
    result = loop.fit(config, tmp_path / "run", console=rich.console.Console(file=io.StringIO()))

    guess = math.log(data_set.classes)
    intervals = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "interval"]
    assert [record["step"] for record in intervals] == [1, 2]
    assert [record["skipped"] for record in intervals] == [0, 0]
    # A network that knows nothing yet has about the loss of a guess; pixels on a wrong scale would show here.
    assert guess - 1.5 < intervals[0]["loss"] < 1.5 * guess + 1
    assert intervals[1]["loss"] != intervals[0]["loss"]
    assert result.count == 2 and result.loss < 2 * guess
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert ("averaged" in results) == (config.optimizer.ema_decay > 0)


def sixteen_digits(size):
    """The first sixteen handwritten digits of scikit-learn, enlarged and normalised."""
    digits = sklearn.datasets.load_digits()
    images = jnp.asarray(digits.images[:16, :, :, None] / 16 - 0.3, jnp.float32)
    return jax.image.resize(images, (16, size, size, 1), "bilinear"), jnp.asarray(digits.target[:16])


@pytest.mark.parametrize("path", sampled(FAMILIES, every=2))
def test_every_family_learns_sixteen_images_by_heart(path):
    config = load_config(ROOT / path)
    model = create_model(config.model.name, num_classes=10, **config.model.options.to_dict())
    images, labels = sixteen_digits(config.data.image_size or 28)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9))

    def loss(params, batch_stats, key):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated.get("batch_stats", {})

    @jax.jit
    def step(params, batch_stats, opt_state, key):
        gradients, batch_stats = jax.grad(loss, has_aux=True)(params, batch_stats, key)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    @jax.jit
    def accuracy(params, batch_stats):
        logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        return (logits.argmax(axis=-1) == labels).mean()

    assert accuracy(params, batch_stats) < 0.5
    opt_state = optimizer.init(params)
    for number in range(3000):
        params, batch_stats, opt_state = step(params, batch_stats, opt_state, jax.random.key(number))
        if number % 50 == 49 and accuracy(params, batch_stats) == 1:
            return
    pytest.fail(f"after 3,000 steps {accuracy(params, batch_stats):.2f} of the images are right")


@pytest.mark.parametrize("path", sampled(SMALL, every=3))
def test_every_small_recipe_runs_from_end_to_end(path, data_dir, tmp_path):
    config = load_config(ROOT / path)
    config.data.name, config.data.data_dir = "digits", str(data_dir)
    config.data.image_size = config.data.image_size or 32
    config.data.resize = "bilinear"
    config.duration, config.batch_size, config.parallel.strategy = "3 steps", 16, "jit"
    result = loop.fit(config, tmp_path / "run", console=rich.console.Console(file=io.StringIO()))
    assert result.count == 359
    assert np.isfinite(result.loss)
