"""The optimizer against its closed form written out in NumPy, and the schedules against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn import create_model
from flaxcnn.config import OptimizerConfig, ScheduleConfig
from flaxcnn.training.optimizer import _is_of_kind, learning_rate, make_optimizer, make_schedule, observe

GRADIENTS = [
    {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5])},
    {"kernel": np.array([[-3.0, 0.25]]), "bias": np.array([4.0])},
    {"kernel": np.array([[0.125, 8.0]]), "bias": np.array([-1.0])},
]
RATES = (0.1, 0.05, 0.2)


def written_out(momentum, nesterov=False, decay=0.0, decayed=("kernel",), clip=math.inf):
    """Three steps of SGD as torch's documentation states it."""
    params = {"kernel": np.array([[1.0, 2.0]]), "bias": np.array([3.0])}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    for rate, gradients in zip(RATES, GRADIENTS, strict=True):
        norm = math.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
        for name, gradient in gradients.items():
            gradient = gradient * min(1, clip / norm)
            if name in decayed:
                gradient = gradient + decay * params[name]
            velocity[name] = momentum * velocity[name] + gradient
            step = gradient + momentum * velocity[name] if nesterov else velocity[name]
            params[name] = params[name] - rate * step
    return params


def run(config):
    optimizer = make_optimizer(config, lambda step: jnp.asarray(RATES)[step])
    params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([3.0])}
    state = optimizer.init(params)
    for gradients in GRADIENTS:
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"momentum": 0.0}, {"momentum": 0.0}),
        ({"momentum": 0.9}, {"momentum": 0.9}),
        ({"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ({"weight_decay": 0.1}, {"momentum": 0.9, "decay": 0.1}),
        (
            {"weight_decay": 0.1, "bias_weight_decay": 0.1},
            {"momentum": 0.9, "decay": 0.1, "decayed": ("kernel", "bias")},
        ),
        ({"clip_norm": 1.5, "weight_decay": 0.1}, {"momentum": 0.9, "decay": 0.1, "clip": 1.5}),
    ],
)
def test_three_steps_equal_the_closed_form(x64, config, expected):
    params = run(OptimizerConfig(**config))
    for name, value in written_out(**expected).items():
        np.testing.assert_allclose(params[name], value, rtol=1e-12)


def rates(config, steps, peak=0.5, total=100):
    schedule = make_schedule(ScheduleConfig(**config), peak, total_steps=total, steps_per_epoch=10)
    return [float(schedule(jnp.asarray(step))) for step in steps]


def test_constant():
    assert rates({"name": "constant"}, [0, 50, 99]) == [0.5, 0.5, 0.5]


def test_multi_step_drops_at_its_milestones():
    config = {"name": "multi_step", "milestones": ("3 epochs", "60 steps"), "factor": 0.1}
    found = rates(config, [0, 29, 30, 59, 60, 99])
    np.testing.assert_allclose(found, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6)


def test_milestones_count_from_the_start_of_the_run_also_after_a_warm_up():
    config = {"name": "multi_step", "milestones": ("3 epochs",), "factor": 0.1, "warmup": "1 epochs"}
    np.testing.assert_allclose(rates(config, [0, 5, 10, 29, 30]), [0, 0.25, 0.5, 0.5, 0.05], rtol=1e-6)


def test_cosine_is_its_formula_at_its_corners():
    np.testing.assert_allclose(rates({"name": "cosine"}, [0, 50, 100]), [0.5, 0.25, 0], atol=1e-7)
    quarter = 0.5 * (1 + math.cos(math.pi / 4)) / 2
    np.testing.assert_allclose(rates({"name": "cosine"}, [25]), [quarter], rtol=1e-6)
    config = {"name": "cosine", "final_factor": 0.2}
    np.testing.assert_allclose(rates(config, [0, 50, 100]), [0.5, 0.3, 0.1], rtol=1e-6)


def test_cosine_after_a_warm_up_fills_the_rest_of_the_run():
    config = {"name": "cosine", "warmup": "2 epochs", "warmup_factor": 0.1}
    found = rates(config, [0, 10, 20, 60, 100])
    np.testing.assert_allclose(found, [0.05, 0.275, 0.5, 0.25, 0], atol=1e-7)


def test_polynomial_is_its_formula_at_its_corners():
    config = {"name": "polynomial", "power": 2.0, "final_factor": 0.1}
    expected = [0.5, 0.5 * (0.1 + 0.9 * 0.75**2), 0.5 * (0.1 + 0.9 * 0.25), 0.05]
    np.testing.assert_allclose(rates(config, [0, 25, 50, 100]), expected, rtol=1e-6)


def test_a_warm_up_as_long_as_the_run_never_passes_the_peak():
    found = rates({"name": "cosine", "warmup": "20 epochs"}, range(100))
    assert max(found) < 0.5 and found == sorted(found)


def test_weights_biases_and_norms_have_decays_of_their_own(x64):
    """Without a gradient a step of rate 1 takes off the decay times the parameter, and nothing else."""
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    }
    config = OptimizerConfig(momentum=0.0, weight_decay=0.1, bias_weight_decay=0.02, norm_weight_decay=0.003)
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    expected = {"conv": (0.1, 0.02), "head": (0.1, 0.02), "norm": (0.003, 0.003)}
    for layer, (weight, bias) in expected.items():
        name = "scale" if layer == "norm" else "kernel"
        np.testing.assert_allclose(updates[layer][name], -weight, rtol=1e-12)
        np.testing.assert_allclose(updates[layer]["bias"], -bias, rtol=1e-12)


@pytest.mark.parametrize("name", ["resnet20", "densenet_bc_100_12", "googlenet", "lenet5"])
def test_norms_are_told_apart_in_every_kind_of_network(name):
    """By counting: only norms have running statistics, and each has as many scales and offsets."""
    options = {"norm": "batch_norm"} if name == "lenet5" else {}
    model = create_model(name, num_classes=10, **options)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 96, 96, 3)), train=False))
    norms = _is_of_kind({"norm"}, variables["params"])
    sizes = jax.tree.map(lambda of_norm, leaf: math.prod(leaf.shape) * of_norm, norms, variables["params"])
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["batch_stats"]))
    assert sum(jax.tree.leaves(sizes)) == counted > 0


def test_step_falls_every_so_often_from_the_start_of_the_run():
    """GoogLeNet's: 4 % every 8 epochs."""
    config = {"name": "step", "every": "8 epochs", "factor": 0.96}
    found = rates(config, [0, 79, 80, 159, 160], total=1000)
    np.testing.assert_allclose(found, [0.5, 0.5, 0.48, 0.48, 0.4608], rtol=1e-6)
    found = rates(config | {"warmup": "1 epochs"}, [0, 5, 10, 79, 80], total=1000)
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.5, 0.48], rtol=1e-6)


def falls(accuracies, patience, factor=0.1):
    """When the rate falls, as AlexNet's section 5 has it: once the error has stopped improving."""
    best, bad, factors, scale = math.inf, 0, [], 1.0
    for accuracy in accuracies:
        if 1 - accuracy < best:
            best, bad = 1 - accuracy, 0
        else:
            bad += 1
        if bad == patience:
            scale, bad = scale * factor, 0
        factors.append(scale)
    return factors


def test_plateau_lowers_the_rate_after_evaluations_without_a_better_one():
    schedule, config = ScheduleConfig(name="plateau", patience=2, factor=0.1), OptimizerConfig(momentum=0.9)
    optimizer = make_optimizer(config, make_schedule(schedule, 0.5, total_steps=100, steps_per_epoch=10), schedule)
    plain = make_optimizer(config, optax.constant_schedule(0.5))
    params = {"kernel": jnp.ones((2, 2))}
    gradient, state, expected_state = {"kernel": jnp.full((2, 2), 0.25)}, optimizer.init(params), plain.init(params)
    accuracies = [0.1, 0.3, 0.3, 0.29, 0.31, 0.2, 0.31, 0.30, 0.31, 0.5, 0.4999, 0.50001]
    for accuracy, factor in zip(accuracies, falls(accuracies, patience=2), strict=True):
        state = observe(schedule, state, accuracy)
        updates, state = optimizer.update(gradient, state, params)
        expected, expected_state = plain.update(gradient, expected_state, params)
        np.testing.assert_allclose(updates["kernel"], factor * expected["kernel"], rtol=1e-5)
        assert learning_rate(lambda step: 0.5, state) == pytest.approx(0.5 * factor, rel=1e-5)
    assert factor == pytest.approx(1e-3)


def test_other_schedules_take_no_note_of_evaluations():
    schedule = ScheduleConfig(name="cosine")
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(0.5), schedule)
    state = optimizer.init({"kernel": jnp.ones((2, 2))})
    assert observe(schedule, state, 0.5) is state
