"""Networks give the same numbers however their arrays are placed, and under every transformation."""

import contextlib
import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxcnn import create_model, ops
from tests.marks import sampled
from tests.variables import random_images, random_variables

# A small network of each family: its images' size and channels, and its fields.
NETS = {
    "lenet5": (12, 1, {"norm": "batch_norm"}),
    "alexnet_2012": (71, 3, {"hidden": 8}),
    "vgg11": (33, 3, {"blocks": ((1, 8), (2, 8)), "hidden": 8}),
    "nin_cifar": (16, 3, {}),
    "googlenet": (33, 3, {}),
    "resnet18": (33, 3, {"depths": (1, 1), "widths": (8, 16)}),
    "resnext50_32x4d": (33, 3, {"depths": (1, 1), "widths": (64, 64)}),
    "densenet121": (33, 3, {"depths": (1, 1)}),
    "anynet": (33, 3, {"stages": ((1, 16, 8), (1, 32, 8))}),
}
every_family = pytest.mark.parametrize(
    "name",
    [
        "lenet5",
        *(pytest.param(name, marks=pytest.mark.slow) for name in NETS if name not in ("lenet5", "googlenet")),
        pytest.param("googlenet", marks=(pytest.mark.slow, pytest.mark.exhaustive)),  # XLA takes its time over it
    ],
)


@functools.cache
def arguments(name, dtype="float64"):
    """A network, its variables, eight images, and what comes of them on one device."""
    size, channels, fields = NETS[name]
    model = create_model(name, num_classes=5, dtype=dtype, param_dtype=dtype, **fields)
    images = np.asarray(random_images(8, size, size, channels), dtype)
    variables = jax.tree.map(np.asarray, random_variables(model, images.shape, dtype=dtype))
    expected = jax.tree.map(np.asarray, jax.jit(functools.partial(results, model))(variables, images))
    return model, variables, images, expected


def results(model, variables, images):
    """Logits, and the gradients of a sum over images with respect to the variables and to each image."""

    def loss(variables, images):
        logits = model.apply(variables, images, train=False)
        return jnp.square(logits).sum(), logits

    (_, logits), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, images)
    return logits, *gradients


def assert_same(found, expected, tolerance=1e-10):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(initial=0), 1e-3))


def placed(variables, images, kind):
    """A mesh of eight devices, the variables on each, and an image on each."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    specs = (variables, P()), (images, P("data"))
    return mesh, *(jax.device_put(leaves, NamedSharding(mesh, spec)) for leaves, spec in specs)


def by_jit(run, *arguments, kind, is_set):
    mesh, *arguments = placed(*arguments, kind)
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        return jax.jit(run)(*arguments)


def by_shard_map(run, *arguments, check_vma, kind=AxisType.Explicit):
    mesh, *arguments = placed(*arguments, kind)

    def on_device(variables, images):
        logits, by_variables, by_images = run(variables, images)
        if not check_vma:  # with it JAX has summed already, as the variables are the same on all devices
            by_variables = jax.lax.psum(by_variables, "data")
        return logits, by_variables, by_images

    specs = {"in_specs": (P(), P("data")), "out_specs": (P("data"), P(), P("data"))}
    return jax.jit(jax.shard_map(on_device, mesh=mesh, check_vma=check_vma, **specs))(*arguments)


def image_by_image(transformed):
    def run(run, variables, images):
        logits, by_variables, by_images = transformed(run, (None, 0))(variables, images[:, None])
        return logits[:, 0], jax.tree.map(lambda leaf: leaf.sum(axis=0), by_variables), by_images[:, 0]

    return run


def by_vmap_of_variables(run, variables, images):
    several = jax.tree.map(lambda leaf: jnp.stack([leaf + 1, leaf]), variables)
    return jax.tree.map(lambda leaf: leaf[1], jax.jit(jax.vmap(run, (0, None)))(several, images))


def by_scan(run, variables, images):
    def body(carry, images):
        return carry, run(variables, images)

    return jax.tree.map(lambda leaf: leaf[0], jax.jit(lambda x: jax.lax.scan(body, 0, x))(images[None])[1])


def within(context):
    def run(run, variables, images):
        with context():
            return jax.jit(run)(variables, images)

    return run


PLACEMENTS = {
    "explicit sharding": functools.partial(by_jit, kind=AxisType.Explicit, is_set=False),
    "explicit sharding, set_mesh": functools.partial(by_jit, kind=AxisType.Explicit, is_set=True),
    "automatic sharding": functools.partial(by_jit, kind=AxisType.Auto, is_set=False),
    "automatic sharding, set_mesh": functools.partial(by_jit, kind=AxisType.Auto, is_set=True),
    "shard_map": functools.partial(by_shard_map, check_vma=True),
    "shard_map without check_vma": functools.partial(by_shard_map, check_vma=False),
    "pmap": image_by_image(lambda run, axes: jax.pmap(run, in_axes=axes)),
    "vmap over images": image_by_image(lambda run, axes: jax.jit(jax.vmap(run, axes))),
    "vmap over variables": by_vmap_of_variables,
    "scan": by_scan,
    "checkpoint": lambda run, *arguments: jax.jit(jax.checkpoint(run))(*arguments),
    "rank promotion": within(lambda: jax.numpy_rank_promotion("raise")),
    "debug_nans": within(lambda: jax.debug_nans(True)),
    "checking_leaks": within(jax.checking_leaks),
    "stock operations": within(ops.stock_operations),
}


# By default of one network, and the two that people use most of another one, too.
DEFAULT = {
    *(("lenet5", placement) for placement in PLACEMENTS),
    ("resnet18", "explicit sharding"),
    ("resnet18", "shard_map"),
}


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        *sorted(DEFAULT),
        *sampled([pair for pair in itertools.product(NETS, PLACEMENTS) if pair not in DEFAULT], every=12),
    ],
)
def test_every_placement_gives_the_numbers_of_one_device(name, placement, x64):
    model, variables, images, expected = arguments(name)
    found = PLACEMENTS[placement](functools.partial(results, model), variables, images)
    assert_same(found, expected)


def called_with_each(module, images, train):
    """Calls a module image by image, in a loop."""

    def body(module, carry, image):
        return carry, module(image, train)

    scan = nn.scan(body, variable_broadcast=("params", "batch_stats"), split_rngs={"params": False})
    return scan(module, 0, images[:, None])[1][:, 0]


class Lifted(nn.Module):
    """A network within another module, by way of a transformation of modules."""

    model: nn.Module
    transform: str

    @nn.compact
    def __call__(self, images, *, train):
        kind = type(self.model)
        fields = {f.name: getattr(self.model, f.name) for f in dataclasses.fields(kind) if f.name != "parent"}
        fields["name"] = "net"
        match self.transform:
            case "remat":
                return nn.remat(kind, static_argnums=(2,))(**fields)(images, train)
            case "jit":
                return nn.jit(kind, static_argnums=(2,))(**fields)(images, train)
            case "vmap":
                whole = {"params": None, "batch_stats": None}
                lifted = nn.vmap(kind, in_axes=(0, None), variable_axes=whole, split_rngs={"params": False})
                return lifted(**fields)(images[:, None], train)[:, 0]
            case "scan":
                return called_with_each(kind(**fields), images, train)
        raise ValueError(self.transform)


@every_family
@pytest.mark.parametrize("transform", ["remat", "jit", "vmap", "scan"])
def test_every_transformation_of_modules_gives_the_numbers_of_the_plain_network(name, transform, x64):
    model, variables, images, expected = arguments(name)
    lifted = Lifted(model, transform)
    inside = {kind: {"net": leaves} for kind, leaves in variables.items()}
    logits, by_variables, by_images = jax.jit(functools.partial(results, lifted))(inside, images)
    assert_same((logits, {kind: leaves["net"] for kind, leaves in by_variables.items()}, by_images), expected)


@every_family
def test_single_precision_stays_so_where_double_precision_is_enabled(name):
    model, variables, images, expected = arguments(name, "float32")
    with jax.enable_x64(True):
        found = jax.jit(functools.partial(results, model))(variables, images)
    assert_same(found, expected, 1e-5)


@every_family
def test_of_no_images_come_no_logits_and_gradients_of_zero(name, x64):
    model, variables, images, _ = arguments(name)
    logits, by_variables, by_images = jax.jit(functools.partial(results, model))(variables, images[:0])
    assert logits.shape == (0, 5) and by_images.shape == (0, *images.shape[1:])
    assert all(not leaf.any() and leaf.size for leaf in jax.tree.leaves(by_variables))


@pytest.mark.slow
@every_family
def test_all_derivatives_agree(name, x64):
    """Those of forward and reverse mode, their compositions, JAX's own operations, and finite differences."""
    model, variables, images, _ = arguments(name)
    params, images = variables["params"], images[:2]
    direction = jax.tree.map(
        lambda leaf: np.abs(leaf).mean() * np.cos(np.arange(leaf.size)).reshape(leaf.shape), (params, images)
    )

    def loss(params, images):
        logits = model.apply({**variables, "params": params}, images, train=False)
        return jnp.square(logits).sum()

    def derivatives(*given):
        gradients = jax.grad(loss, (0, 1))
        slopes = (
            jax.jvp(loss, given, direction)[1],
            jax.linearize(loss, *given)[1](*direction),
            sum(map(jnp.vdot, jax.tree.leaves(gradients(*given)), jax.tree.leaves(direction))),
        )
        curvatures = (
            jax.jvp(gradients, given, direction)[1],
            jax.grad(lambda *given: jax.jvp(loss, given, direction)[1], (0, 1))(*given),
        )
        return slopes, curvatures

    slopes, curvatures = jax.jit(derivatives)(params, images)
    with ops.stock_operations():
        (slope, *_), (curvature, _) = jax.jit(derivatives)(params, images)
    step = 1e-6
    ahead, behind = (
        jax.jit(loss)(
            *jax.tree.map(lambda leaf, by, sign=sign: leaf + sign * step * by, (params, images), direction)
        )
        for sign in (1, -1)
    )
    np.testing.assert_allclose(slopes, [slope] * 3, rtol=1e-10)
    np.testing.assert_allclose(slopes, [(ahead - behind) / (2 * step)] * 3, rtol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(curvature))
    for found in curvatures:
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(curvature), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 * scale)
