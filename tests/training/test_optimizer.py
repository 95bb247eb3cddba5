"""The optimizer against its closed form written out in NumPy, and the schedules against their formulas."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcnn.config import OptimizerConfig, ScheduleConfig
from flaxcnn.training.optimizer import make_optimizer, make_schedule

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
            {"weight_decay": 0.1, "weight_decay_on": "all"},
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
