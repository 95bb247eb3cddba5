"""Every operation has the derivatives of its formula: of both modes, of any order, and alike in batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from flaxcnn import ops

SHAPE = (2, 6, 7, 4)


def convolved(x, kernel, stride=1, groups=1):
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    return ops.convolution(x, kernel, (stride, stride), padding, feature_group_count=groups)


def values(*shape, dtype=np.float64):
    """Distinct numbers, so that no maximum is taken twice."""
    return np.random.default_rng(len(shape)).permutation(np.prod(shape)).reshape(shape).astype(dtype) / np.prod(
        shape
    )


def case(function, *shapes):
    return function, (SHAPE, *shapes)


OPERATIONS = {
    "convolution": case(convolved, (3, 3, 4, 5)),
    "strided": case(functools.partial(convolved, stride=2), (3, 3, 4, 5)),
    "pointwise": case(functools.partial(convolved, stride=2), (1, 1, 4, 3)),
    "grouped": case(functools.partial(convolved, groups=2), (3, 3, 2, 6)),
    "depthwise": case(functools.partial(convolved, groups=4), (3, 3, 1, 4)),
    "max_pool": case(lambda x: ops.max_pool(x, 3, 2, padding=1)),
    "max_pool_side_by_side": case(lambda x: ops.max_pool(x, 2, 2, ceil_mode=True)),
    "average_pool": case(lambda x: ops.average_pool(x, 3, 2, padding=1)),
    "average_pool_side_by_side": case(lambda x: ops.average_pool(x, 2, 2)),
    "global_average_pool": case(ops.global_average_pool),
    "adaptive_average_pool": case(lambda x: ops.adaptive_average_pool(x, (4, 3))),
    "local_response_norm": case(lambda x: ops.local_response_norm(x, alpha=0.5)),
}
# The others go the same ways through the same rules.
DEFAULT = {"convolution", "max_pool", "average_pool_side_by_side", "local_response_norm"}
every_operation = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in OPERATIONS]
)


def directions(arguments):
    return tuple(jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in arguments)


def derivatives(function, *arguments):
    """Returns values, Jacobians and curvatures of a function, by several ways to each."""
    along = directions(arguments)
    numbers = tuple(range(len(arguments)))

    def loss(*arguments):
        y = jnp.sin(function(*arguments))
        return jnp.vdot(y, jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    def slope(*arguments):
        return jax.jvp(loss, arguments, along)[1]

    def slope_by_gradient(*arguments):
        return sum(map(jnp.vdot, jax.grad(loss, numbers)(*arguments), along))

    return {
        "tangent": [jax.jvp(function, arguments, along)[1], jax.linearize(function, *arguments)[1](*along)],
        "jacobian": [jax.jacfwd(function, numbers)(*arguments), jax.jacrev(function, numbers)(*arguments)],
        "gradient": [jax.grad(loss, numbers)(*arguments)],
        "curvature": [
            jax.jvp(jax.grad(loss, numbers), arguments, along)[1],  # forward over reverse
            jax.grad(slope, numbers)(*arguments),  # reverse over forward
            jax.grad(slope_by_gradient, numbers)(*arguments),  # reverse over reverse
        ],
        "third": [
            jax.grad(lambda *arguments: jax.jvp(slope, arguments, along)[1], numbers)(*arguments),
            jax.jvp(jax.grad(slope, numbers), arguments, along)[1],
        ],
    }


def assert_close(found, expected, tolerance):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1, np.abs(other).max()))


@every_operation
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-10), pytest.param("float32", 2e-6, marks=pytest.mark.slow)]
)
def test_all_ways_to_a_derivative_give_that_of_the_stock_operation(name, dtype, tolerance, x64):
    function, shapes = OPERATIONS[name]
    arguments = [jnp.asarray(values(*shape), dtype) for shape in shapes]
    found = jax.jit(functools.partial(derivatives, function))(*arguments)
    exact = [argument.astype("float64") for argument in arguments]
    with ops.stock_operations():
        expected = jax.jit(functools.partial(derivatives, function))(*exact)
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype), expected)
    for kind, ways in found.items():
        for way in ways:
            assert_close(way, expected[kind][0], tolerance * (10 if kind == "third" else 1))


@every_operation
def test_derivatives_are_those_of_finite_differences(name, x64):
    function, shapes = OPERATIONS[name]
    check_grads(function, [values(*shape) for shape in shapes], order=2, modes=["fwd", "rev"], eps=1e-6)


@every_operation
def test_a_batch_of_calls_is_each_call_by_itself(name, x64):
    function, shapes = OPERATIONS[name]
    arguments = [values(3, *shape) for shape in shapes]

    def run(*arguments):
        return derivatives(function, *arguments)["curvature"]

    for mapped in [(True,) * len(shapes), *([(True, False), (False, True)] if len(shapes) > 1 else [])]:
        axes = [0 if is_mapped else None for is_mapped in mapped]
        given = [x if is_mapped else x[0] for x, is_mapped in zip(arguments, mapped, strict=True)]
        found = jax.jit(jax.vmap(run, axes))(*given)
        for number in range(3):
            alone = jax.jit(run)(
                *(x[number] if is_mapped else x for x, is_mapped in zip(given, mapped, strict=True))
            )
            assert_close(jax.tree.map(lambda leaf, number=number: leaf[number], found), alone, 1e-12)


@every_operation
@pytest.mark.parametrize("way", [lambda run: run, jax.vmap], ids=["empty batch", "no calls"])
def test_nothing_gives_nothing(name, way):
    function, shapes = OPERATIONS[name]
    if way is jax.vmap:
        arguments = [jnp.zeros((0, *shape)) for shape in shapes]
    else:
        arguments = [jnp.zeros((0, *shapes[0][1:])), *(jnp.ones(shape) for shape in shapes[1:])]

    def run(*arguments):
        return function(*arguments), jax.grad(lambda *x: function(*x).sum(), tuple(range(len(shapes))))(*arguments)

    found = jax.jit(way(run))(*arguments)
    with ops.stock_operations():
        expected = jax.jit(way(run))(*arguments)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")], ids=str)
@every_operation
def test_results_of_a_mapped_call_lie_where_its_arguments_do(name, spec):
    function, shapes = OPERATIONS[name]
    mesh = jax.make_mesh((4,), ("data",))
    x, *kernels = (values(4, *shape, dtype=np.float32) for shape in [(4, *shapes[0][1:]), *shapes[1:]])
    kernels = [kernel[0] for kernel in kernels]

    def run(x):
        def one(x):
            return function(x, *kernels)

        return jax.vmap(one)(x), jax.grad(lambda x: jnp.sin(jax.vmap(one)(x)).sum())(x)

    expected = jax.jit(run)(x)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, spec))
        found = jax.jit(run)(x)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, 1e-5)
            assert P(*jax.typeof(one).sharding.spec[: len(spec)]) == spec


def test_the_switch_leaves_nothing_but_operations_of_jax():
    function, shapes = OPERATIONS["convolution"]
    arguments = [values(*shape, dtype=np.float32) for shape in shapes]
    compiled = jax.jit(lambda x, kernel: ops.global_average_pool(ops.max_pool(function(x, kernel), 2, 2)))

    def primitives():
        jaxpr = jax.make_jaxpr(compiled)(*arguments).jaxpr
        return {equation.primitive.name for equation in jaxpr.eqns[0].params["jaxpr"].jaxpr.eqns}

    ours = primitives()
    with ops.stock_operations():
        assert primitives() >= {"conv_general_dilated", "reduce_window_max", "reduce_sum"}
        assert not primitives() & ours & {"flaxcnn_convolution", "flaxcnn_max_pool", "flaxcnn_mean"}
    assert primitives() == ours
