"""Networks compare, copy and transform as modules of stock layers do."""

import copy
import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxcnn import Predictor, create_model, fold_batch_norm, list_models
from flaxcnn.ops import max_pool
from tests.variables import random_images, random_variables

# A small network of each family, and the minimum size of its images.
SMALL = {
    "lenet5": (12, {"norm": "batch_norm"}),
    "lenet5_1998": (32, {}),
    "alexnet_bn": (67, {"widths": (8, 8, 8, 8, 8), "hidden": 8}),
    "alexnet_2012": (63, {"widths": (8, 8, 8, 8, 8), "hidden": 8}),
    "vgg11": (32, {"blocks": ((1, 4),), "hidden": 8, "norm": "layer_norm"}),
    "nin": (96, {"blocks": ((11, 4, 0, 4, 4, 4),)}),
    "googlenet": (32, {"transform_input": True, "aux_logits": True}),
    "googlenet_paper": (32, {"aux_logits": True}),
    "resnet20": (8, {"depths": (1,), "widths": (4,), "stem_features": 4}),
    "resnet30": (66, {"depths": (1, 1), "widths": (4, 8), "stem_features": 4}),
    "wrn_28_10": (8, {"depths": (1,), "widths": (4,), "stem_features": 4, "dropout_rate": 0.3}),
    "densenet40_12": (8, {"depths": (2, 1), "dropout_rate": 0.3}),
    "regnet_y_400mf": (32, {"stages": ((1, 8, 8),), "stem_features": 4}),
}


# Those that compile slowly.
LARGE = {"googlenet", "googlenet_paper", "alexnet_bn", "resnet30", "nin"}
every_small = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in SMALL]
)


def small(name, **fields):
    size, own = SMALL[name]
    return create_model(name, num_classes=5, **(own | fields)), (2, size, size, 3)


def assert_same_as_copies(model, rebuilt):
    for other in (
        rebuilt,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        model.clone(),
        copy.copy(model),
    ):
        assert other == model and hash(other) == hash(model)


@pytest.mark.parametrize("name", list_models())
def test_a_network_is_equal_to_its_copies(name):
    assert_same_as_copies(create_model(name), create_model(name))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lenet5", lambda: {"activation": nn.relu, "pooling": "max", "norm": "group_norm"}),
        ("lenet5", lambda: {"activation": "tanh", "pooling": functools.partial(max_pool, window=2, stride=2)}),
        ("lenet5", lambda: {"activation": functools.partial(nn.leaky_relu, negative_slope=0.2)}),
        ("resnet18", lambda: {"norm": functools.partial(nn.GroupNorm, num_groups=8), "dtype": "bfloat16"}),
        ("resnet18", lambda: {"norm": functools.partial(nn.BatchNorm, momentum=0.5), "bn_axis_name": ("a", "b")}),
        ("vgg11", lambda: {"norm": nn.LayerNorm, "num_classes": 0}),
        ("densenet121", lambda: {"norm": None, "remat": True}),
        ("regnet_x_400mf", lambda: {"stages": [[1, 8, 8], [1, 16, 8]]}),
    ],
)
def test_so_is_one_with_fields_of_its_own(name, fields):
    model = create_model(name, **fields())
    assert_same_as_copies(model, create_model(name, **fields()))
    assert model != create_model(name)


def test_a_dtype_by_name_is_that_dtype():
    model = create_model("resnet18", dtype="float32", param_dtype=np.float32)
    assert model == create_model("resnet18") and hash(model) == hash(create_model("resnet18"))


def test_folded_networks_are_equal():
    model, shape = small("wrn_28_10")
    variables = random_variables(model, shape)
    folded, other = (fold_batch_norm(model, variables)[0] for _ in range(2))
    assert_same_as_copies(folded, other)


def test_a_rebuilt_network_as_a_static_argument_compiles_nothing_anew():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def forward(model, variables, images):
        traces.append(model)
        return model.apply(variables, images, train=False)

    model, shape = small("resnet20")
    variables = random_variables(model, shape)
    for other in (model, small("resnet20")[0], copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        forward(other, variables, jnp.zeros(shape))
    assert len(traces) == 1
    forward(small("resnet20", dtype="bfloat16")[0], variables, jnp.zeros(shape))
    assert len(traces) == 2


def outputs(model, variables, images, *arguments, **keywords):
    keywords |= {"mutable": ["batch_stats", "aux_logits"], "rngs": {"dropout": jax.random.key(1)}}
    return jax.tree.leaves(model.apply(variables, images, *arguments, **keywords))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["lenet5", "wrn_28_10", pytest.param("densenet40_12", marks=pytest.mark.slow)])
def test_the_mode_by_position_is_that_by_name(name, train):
    model, shape = small(name)
    variables, images = random_variables(model, shape), random_images(*shape)
    for method in (None, "features"):
        found = outputs(model, variables, images, train, method=method)
        for leaf, other in zip(found, outputs(model, variables, images, train=train, method=method), strict=True):
            np.testing.assert_array_equal(leaf, other)


def test_without_a_mode_there_is_no_call():
    model, shape = small("lenet5")
    with pytest.raises(TypeError, match="train"):
        model.init(jax.random.key(0), jnp.zeros(shape))


def fields_of(model):
    own = model.__dataclass_fields__.keys() - {"parent", "name"}
    return {field: getattr(model, field) for field in own}


@pytest.mark.parametrize("lift", ["remat", "jit"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lenet5", {"norm": None}),
        pytest.param("resnet20", {}, marks=pytest.mark.slow),
        pytest.param("vgg11", {"dropout_rate": 0.0}, marks=pytest.mark.slow),
        ("wrn_28_10", {"dropout_rate": 0.0}),
    ],
)
def test_a_lifted_network_trains_as_the_plain_one(name, fields, lift):
    model, shape = small(name, **fields)
    lifted = getattr(nn, lift)(type(model), static_argnums=(2,))(**fields_of(model))
    variables, images = random_variables(model, shape), random_images(*shape)

    def loss(params, model):
        logits, updated = model.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
        return jnp.square(logits).sum(), updated

    differentiate = jax.value_and_grad(loss, has_aux=True)
    found, expected = (differentiate(variables["params"], each) for each in (lifted, model))
    for leaf, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "resnet20", "densenet40_12"])
def test_an_ensemble_by_vmap_is_its_networks(name):
    model, shape = small(name)
    axes = {"params": 0, "batch_stats": 0}
    ensemble = nn.vmap(
        type(model),
        in_axes=(None, None),
        axis_size=2,
        variable_axes=axes,
        split_rngs={"params": True, "dropout": True},
    )(**fields_of(model))
    each = [random_variables(model, shape, seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    images = random_images(*shape)
    for train in (False, True):
        found, _ = ensemble.apply(
            stacked, images, train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        assert found.shape == (2, 2, 5)
        if not train:
            for index, variables in enumerate(each):
                np.testing.assert_allclose(
                    found[index], model.apply(variables, images, False), rtol=1e-3, atol=1e-4
                )


def test_networks_one_after_another_by_scan():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            maps = create_model("resnet20", num_classes=0, depths=(1,), widths=(3,), stem_features=3)
            return images + maps(images, train)[:, None, None], None

    chain = nn.scan(
        Step,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
        in_axes=nn.broadcast,
    )()
    images = random_images(2, 8, 8, 3).astype(jnp.float32)
    variables = chain.init(jax.random.key(0), images, False)
    (found, _), _ = chain.apply(variables, images, True, mutable=["batch_stats"])
    assert all(len(leaf) == 3 for leaf in jax.tree.leaves(variables)) and np.isfinite(found).all()


@pytest.fixture
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("train", [False, True])
@every_small
def test_no_array_gains_axes_silently(no_rank_promotion, name, train):
    model, shape = small(name)

    def loss(params, variables):
        keywords = {"mutable": ["batch_stats", "aux_logits"], "rngs": {"dropout": jax.random.key(0)}}
        return model.apply({**variables, "params": params}, jnp.zeros(shape), train, **keywords)[0].sum()

    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros(shape))
    gradients = jax.eval_shape(jax.grad(loss), variables["params"], variables)
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])


@pytest.mark.parametrize("name", ["resnet20", "wrn_28_10"])
def test_nor_does_one_in_prediction(no_rank_promotion, name):
    model, shape = small(name)
    images = np.asarray(random_images(*shape), np.float32)
    assert Predictor(model, random_variables(model, shape))(images).shape == (2, 5)


@every_small
def test_every_family_is_an_nnx_module(name):
    model, shape = small(name)
    images = jnp.asarray(random_images(*shape), jnp.float32)

    def shapes():
        network = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(params=0, dropout=1))
        network.lazy_init(images, train=False)
        return network(images, train=False), nnx.state(network, nnx.Param)

    logits, params = jax.eval_shape(shapes)
    expected = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)["params"]
    assert logits.shape == (2, 5)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(
        leaf.size for leaf in jax.tree.leaves(expected)
    )
