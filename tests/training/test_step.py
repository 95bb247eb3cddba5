"""One step: its loss, gradient, metrics and randomness, against definitions written out here."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from flaxcnn.config import DataConfig, EvaluationConfig
from flaxcnn.data.preprocess import evaluation_inputs
from flaxcnn.errors import UserError
from flaxcnn.inference.views import average_views
from flaxcnn.models import create_model
from flaxcnn.training.eval_step import make_eval_step
from flaxcnn.training.losses import cross_entropy
from flaxcnn.training.state import LossScale
from flaxcnn.training.train_step import make_train_step
from tests.variables import random_state


class Linear(nn.Module):
    """Logits that are a linear function of the pixels, through dropout."""

    num_classes: int = 7
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(images.shape[0], -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class Statistics(nn.Module):
    """BatchNorm of the pixels as they are, so that its statistics are those of the pixels."""

    momentum: float = 0.9
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images, *, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, dtype=self.dtype, name="norm")
        return nn.Dense(7, dtype=self.dtype)(norm(images).mean((1, 2)))


def as_float(images, key=None, sample_ids=None):
    return images.astype(jnp.float32) / 255


def one_view(images):
    return [as_float(images)]


def noisy(images, key, sample_ids):
    """Images and noise, of each visit's own."""

    def noise(visit):
        own = jax.random.fold_in(jax.random.fold_in(key, visit[0]), visit[1])
        return jax.random.uniform(own, images.shape[1:])

    return as_float(images) + jax.vmap(noise)(sample_ids)


def batch_of(size, classes=7, shape=(2, 3, 1), mask=None):
    rng = np.random.default_rng(3)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, *shape), np.uint8)),
        "label": jnp.asarray(rng.integers(0, classes, size), jnp.int32),
        "mask": jnp.ones(size) if mask is None else jnp.asarray(mask, jnp.float32),
    }


def state_of(model, optimizer, shape=(2, 3, 1)):
    return random_state(model, optimizer, shape)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_its_formula(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 7)), rng.integers(0, 7, 5)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = (1 - smoothing) * np.eye(7)[labels] + smoothing / 7
    losses = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(losses, -(target * log_p).sum(-1), rtol=1e-5)


def test_a_step_is_plain_gradient_descent_on_the_mean_loss():
    model, batch = Linear(), batch_of(8)
    optimizer = optax.sgd(0.5)
    state = state_of(model, optimizer)
    after, metrics = jax.jit(make_train_step(model, optimizer, as_float))(state, batch)

    x = np.asarray(batch["image"], float).reshape(8, -1) / 255
    kernel, bias = (np.asarray(state.params["Dense_0"][name], float) for name in ("kernel", "bias"))
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    error = (p - np.eye(7)[batch["label"]]) / 8
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel - 0.5 * x.T @ error, rtol=1e-5)
    np.testing.assert_allclose(after.params["Dense_0"]["bias"], bias - 0.5 * error.sum(0), rtol=1e-5)
    assert int(after.step) == 1
    own = -np.log(p[np.arange(8), batch["label"]])
    np.testing.assert_allclose(float(metrics["loss"]), own.sum(), rtol=1e-5)
    assert int(metrics["correct"]) == (logits.argmax(-1) == batch["label"]).sum()
    assert int(metrics["count"]) == 8


def test_masked_examples_count_for_nothing():
    model, optimizer = Linear(), optax.sgd(0.5)
    state = state_of(model, optimizer)
    whole = batch_of(8, mask=[1, 1, 1, 1, 1, 0, 0, 0])
    part = {name: leaf[:5] for name, leaf in whole.items()}
    step = jax.jit(make_train_step(model, optimizer, as_float))
    (after, metrics), (expected, expected_metrics) = step(state, whole), step(state, part)
    for leaf, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-7)
    assert int(metrics["count"]) == 5 and int(metrics["correct"]) == int(expected_metrics["correct"])

    evaluate = jax.jit(make_eval_step(model, one_view))
    found, expected = evaluate(state, whole), evaluate(state, part)
    for name in ("correct", "correct_top5", "count", "confusion"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_batch_split_over_an_axis_gives_the_step_of_the_whole():
    model, optimizer = Linear(), optax.sgd(0.5)
    state = state_of(model, optimizer)
    # Shares of unequal weight: the mask leaves 2, 1, 2 and 0 examples.
    batch = batch_of(8, mask=[1, 1, 1, 0, 1, 1, 0, 0])
    train_step, eval_step = make_train_step(model, optimizer, as_float), make_eval_step(model, one_view)
    shares = {name: leaf.reshape(4, 2, *leaf.shape[1:]) for name, leaf in batch.items()}

    def split(step):
        return jax.jit(jax.vmap(lambda share: step(state, share, axis_name="d"), axis_name="d", out_axes=0))(shares)

    expected, expected_metrics = jax.jit(train_step)(state, batch)
    after, metrics = split(train_step)
    for leaf, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        for device in range(4):
            np.testing.assert_allclose(leaf[device], other, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], [expected_metrics["loss"]] * 4, rtol=1e-6)
    assert metrics["count"].tolist() == [5] * 4
    for name, value in jax.jit(eval_step)(state, batch).items():
        np.testing.assert_allclose(split(eval_step)[name][3], value, rtol=1e-6)


def test_evaluation_metrics_are_those_of_counting():
    model, batch = Linear(), batch_of(40)
    state = state_of(model, optax.sgd(0.1))
    metrics = jax.jit(make_eval_step(model, one_view))(state, batch)
    logits = np.asarray(model.apply(state.variables, as_float(batch["image"]), train=False))
    labels = np.asarray(batch["label"])
    confusion = np.zeros((7, 7), int)
    for label, prediction in zip(labels, logits.argmax(-1), strict=True):
        confusion[label, prediction] += 1
    np.testing.assert_array_equal(metrics["confusion"], confusion)
    top5 = [label in row.argsort()[-5:] for label, row in zip(labels, logits, strict=True)]
    assert int(metrics["correct_top5"]) == sum(top5)
    assert int(metrics["correct"]) == np.trace(confusion)


class TwoHeads(nn.Module):
    """A main head and two auxiliary ones, of which the second is sown deeper."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(images.shape[0], -1)
        for name in ("aux1", "aux2"):
            logits = nn.Dense(7, name=name)(x)
            if train:
                self.sow("aux_logits", f"{name}_logits", logits)
        return nn.Dense(7, name="main")(x)


def test_auxiliary_heads_learn_at_three_tenths_and_stay_out_of_the_metrics():
    model, optimizer, batch = TwoHeads(), optax.sgd(1.0), batch_of(8)
    state = state_of(model, optimizer)
    after, metrics = jax.jit(make_train_step(model, optimizer, as_float))(state, batch)
    for name, weight in (("aux1", 0.3), ("aux2", 0.3), ("main", 1.0)):
        x = np.asarray(batch["image"], float).reshape(8, -1) / 255
        logits = x @ np.asarray(state.params[name]["kernel"]) + np.asarray(state.params[name]["bias"])
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = state.params[name]["kernel"] - weight * x.T @ (p - np.eye(7)[batch["label"]]) / 8
        np.testing.assert_allclose(after.params[name]["kernel"], expected, rtol=1e-4, atol=1e-6)
    own = -np.log(p[np.arange(8), batch["label"]])
    np.testing.assert_allclose(float(metrics["loss"]), own.sum(), rtol=1e-5)


def test_a_logit_that_is_not_a_number_is_never_among_the_best_five():
    model = Linear()
    state = state_of(model, optax.sgd(0.1))
    state = state.replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))
    assert int(jax.jit(make_eval_step(model, one_view))(state, batch_of(8))["correct_top5"]) == 0


def test_dropout_and_augmentation_depend_on_seed_and_step_alone():
    model, optimizer = Linear(dropout_rate=0.5), optax.sgd(0.5)
    step = jax.jit(make_train_step(model, optimizer, noisy))

    def kernel(seed, at):
        state = state_of(model, optimizer).replace(step=jnp.asarray(at, jnp.int32), rng=jax.random.key(seed))
        return np.asarray(step(state, batch_of(8))[0].params["Dense_0"]["kernel"])

    np.testing.assert_array_equal(kernel(0, 5), kernel(0, 5))
    assert not np.array_equal(kernel(0, 5), kernel(0, 6))
    assert not np.array_equal(kernel(0, 5), kernel(1, 5))


def test_batch_statistics_are_updated_and_evaluation_leaves_everything_alone():
    model = create_model("lenet5", norm="batch_norm", num_classes=7)
    optimizer, batch = optax.sgd(0.1), batch_of(8, shape=(12, 12, 1))
    state = state_of(model, optimizer, shape=(12, 12, 1))
    after, _ = jax.jit(make_train_step(model, optimizer, as_float))(state, batch)
    before = jax.tree.leaves(state.batch_stats)
    assert all(not np.array_equal(*pair) for pair in zip(before, jax.tree.leaves(after.batch_stats), strict=True))
    assert set(make_eval_step(model, one_view)(after, batch)) == {
        "loss",
        "correct",
        "count",
        "correct_top5",
        "confusion",
    }


def test_averages_follow_their_recurrence():
    """Parameters and statistics alike; the share kept rises from 0.1 to the given one."""
    model, optimizer, batch = Statistics(), optax.sgd(0.1), batch_of(8)
    state = state_of(model, optimizer)
    expected = jax.tree.map(np.asarray, state.variables)
    state = state.replace(ema=state.variables)
    step = jax.jit(make_train_step(model, optimizer, as_float, ema_decay=0.6))
    for number in range(14):
        state, _ = step(state, batch)
        decay = min(0.6, (1 + number) / (10 + number))
        live = jax.tree.map(np.asarray, state.variables)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, live)
    assert decay == 0.6
    for leaf, other in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)
    averaged = state.averaged()
    assert averaged.params is state.ema["params"] and averaged.batch_stats is state.ema["batch_stats"]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_an_overflow_in_float16_is_skipped_and_halves_the_scale():
    model, optimizer = Statistics(dtype=jnp.float16), optax.sgd(0.1, momentum=0.9)
    batch, state = batch_of(8), state_of(model, optimizer)
    step = jax.jit(make_train_step(model, optimizer, as_float, ema_decay=0.9))
    scale = LossScale(jnp.float32(2.0**40), jnp.int32(7))  # 2**40 overflows in float16, whose largest is 65,504
    state = state.replace(ema=state.variables, loss_scale=scale)
    after, metrics = step(state, batch)
    assert (float(after.loss_scale.scale), int(after.loss_scale.good_steps)) == (2.0**39, 0)
    for name in ("params", "batch_stats", "opt_state", "ema"):
        assert bits(getattr(after, name)) == bits(getattr(state, name))
    assert bits(jax.random.key_data(after.rng)) == bits(jax.random.key_data(state.rng))
    assert int(after.step) == int(state.step) + 1
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": 0,
        "correct": 0,
        "count": 0,
        "skipped": 1,
    }

    # A scale that float16 can hold: the step is that without a scale, but for rounding.
    state = state.replace(loss_scale=LossScale(jnp.float32(2.0**10), jnp.int32(7)))
    after, metrics = step(state, batch)
    expected, _ = step(state.replace(loss_scale=None), batch)
    assert int(metrics["skipped"]) == 0 and int(after.loss_scale.good_steps) == 8
    for leaf, other in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(leaf, other, atol=2e-3)


def test_the_loss_scale_doubles_after_good_steps_and_stays_above_one():
    scale = LossScale(jnp.float32(4.0), jnp.int32(0))
    good, bad = jnp.array(True), jnp.array(False)
    history = []
    for finite in (good, good, good, bad, good, bad, bad, bad):
        scale = scale.adjust(finite, growth_interval=3)
        history.append((float(scale.scale), int(scale.good_steps)))
    assert history == [(4, 1), (4, 2), (8, 0), (4, 0), (4, 1), (2, 0), (1, 0), (1, 0)]


def test_a_gradient_that_is_not_a_number_changes_nothing_in_float32():
    model, optimizer, batch = Linear(), optax.sgd(0.5, momentum=0.9), batch_of(8)
    state = state_of(model, optimizer)

    def broken(images, key, sample_ids):
        return as_float(images).at[3].set(jnp.nan)

    after, metrics = jax.jit(make_train_step(model, optimizer, broken))(state, batch)
    assert bits((after.params, after.opt_state)) == bits((state.params, state.opt_state))
    assert int(metrics["skipped"]) == 1 and int(metrics["count"]) == 0 and float(metrics["loss"]) == 0


def test_the_compiled_step_grows_with_the_number_of_parameters_and_not_with_its_square():
    class Deep(nn.Module):
        layers: int

        @nn.compact
        def __call__(self, images, *, train):
            x = images.reshape(images.shape[0], -1)
            for _ in range(self.layers):
                x = nn.Dense(7)(x)
            return x

    def lines(layers):
        model, optimizer = Deep(layers), optax.sgd(0.5, momentum=0.9)
        step = jax.jit(make_train_step(model, optimizer, as_float))
        return step.lower(state_of(model, optimizer), batch_of(8)).compile().as_text().count("\n")

    few, more, most = map(lines, (5, 15, 25))
    assert most - more < 1.3 * (more - few)


@pytest.mark.parametrize(("momentum", "micro_batches", "devices"), [(0.9, 1, 4), (0.3, 2, 1), (0.3, 2, 4)])
def test_running_statistics_are_those_of_the_whole_batch(x64, momentum, micro_batches, devices):
    """In closed form: mean and (biased) variance of all pixels, averaged over the steps by the momentum."""
    model, optimizer = Statistics(momentum), optax.sgd(0.0)
    rng = np.random.default_rng(4)
    state = state_of(model, optimizer, shape=(5, 5, 3))
    mean, var = (np.asarray(state.batch_stats["norm"][name], float) for name in ("mean", "var"))
    step = make_train_step(model, optimizer, lambda x, **_: x.astype(jnp.float64), micro_batches=micro_batches)
    for number in range(3):
        # Shares that differ much, in mean and in spread.
        low = np.arange(16)[:, None, None, None] * 10
        images = rng.integers(low, low + 20 * (number + 1), (16, 5, 5, 3)).astype(np.uint8)
        batch = {"image": images, "label": np.zeros(16, np.int32), "mask": np.ones(16, np.float32)}
        shares = {name: rows.reshape(devices, 16 // devices, *rows.shape[1:]) for name, rows in batch.items()}
        split = jax.vmap(lambda share, state=state: step(state, share, axis_name="d"), axis_name="d")
        after, _ = jax.jit(split)(shares)
        state = jax.tree.map(lambda leaf: leaf[0], after)
        mean = momentum * mean + (1 - momentum) * images.mean((0, 1, 2))
        var = momentum * var + (1 - momentum) * images.astype(float).var((0, 1, 2))
        for device in range(devices):
            np.testing.assert_allclose(after.batch_stats["norm"]["mean"][device], mean, rtol=1e-6)
            np.testing.assert_allclose(after.batch_stats["norm"]["var"][device], var, rtol=1e-6)


def test_a_share_that_cannot_be_cut_is_refused():
    step = make_train_step(Linear(), optax.sgd(0.1), as_float, micro_batches=3)
    with pytest.raises(ValueError, match="3 micro-batches do not divide the 8 examples"):
        step(state_of(Linear(), optax.sgd(0.1)), batch_of(8))


def test_ten_crops_of_a_linear_model_are_the_mean_over_ten_explicit_crops():
    """Softmax is averaged, as in the papers; the loss is that of the averaged probabilities."""
    model, batch = Linear(), batch_of(6, shape=(8, 8, 3))
    state = state_of(model, optax.sgd(0.1), shape=(5, 5, 3))
    config = DataConfig(image_size=5), EvaluationConfig(shorter_side=8, views="ten_crop")
    views = functools.partial(evaluation_inputs, *config, dtype=jnp.float32)
    metrics = jax.jit(make_eval_step(model, views))(state, batch)

    images = np.asarray(batch["image"], float) / 255
    kernel, bias = (np.asarray(state.params["Dense_0"][name], float) for name in ("kernel", "bias"))
    total = np.zeros((6, 7))
    for top, left in ((0, 0), (0, 3), (3, 0), (3, 3), (1, 1)):
        crop = images[:, top : top + 5, left : left + 5]
        for view in (crop, crop[:, :, ::-1]):
            logits = view.reshape(6, -1) @ kernel + bias
            total += np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = total / 10
    own = mean[np.arange(6), batch["label"]]
    np.testing.assert_allclose(float(metrics["loss"]), -np.log(own).sum(), rtol=1e-5)
    assert int(metrics["correct"]) == (mean.argmax(-1) == batch["label"]).sum()
    averaged = jnp.exp(average_views(model, state.variables, views(batch["image"])))
    np.testing.assert_allclose(averaged, mean, rtol=1e-5)


def test_a_mixed_batch_is_learned_by_the_shares_of_its_classes():
    model, optimizer, batch = Linear(), optax.sgd(0.5), batch_of(8)
    state = state_of(model, optimizer)

    def swap_a_quarter(key, images, targets, mask):
        partner = np.arange(8) ^ 1
        return 0.75 * images + 0.25 * images[partner], 0.75 * targets + 0.25 * targets[partner], mask

    after, metrics = jax.jit(make_train_step(model, optimizer, as_float, mix=swap_a_quarter))(state, batch)
    x = np.asarray(batch["image"], float).reshape(8, -1) / 255
    targets, partner = np.eye(7)[batch["label"]], np.arange(8) ^ 1
    x, targets = 0.75 * x + 0.25 * x[partner], 0.75 * targets + 0.25 * targets[partner]
    kernel, bias = (np.asarray(state.params["Dense_0"][name], float) for name in ("kernel", "bias"))
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(float(metrics["loss"]), -(targets * np.log(p)).sum(), rtol=1e-5)
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel - 0.5 * x.T @ (p - targets) / 8, rtol=1e-4)
    assert int(metrics["correct"]) == (logits.argmax(-1) == batch["label"]).sum()  # the class of the larger share


# What needs nothing but gradients, what needs the loss, and what asks for functions of the parameters.
OPTIMIZERS = {
    "adamw": lambda: optax.adamw(0.05),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    "multi_steps": lambda: optax.MultiSteps(optax.sgd(0.5), 2),
    "with_noise": lambda: optax.chain(optax.add_noise(0.001, 0.9, jax.random.key(0)), optax.sgd(0.5)),
    "muon": lambda: optax.contrib.muon(0.05),
    "prodigy": lambda: optax.contrib.prodigy(1.0),
    "dadapt_adamw": lambda: optax.contrib.dadapt_adamw(1.0),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(0.05),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(1.0)),
    "sam": lambda: optax.contrib.sam(optax.sgd(0.5), optax.sgd(0.05), sync_period=2),
    "sam_in_one_step": lambda: optax.contrib.sam(optax.sgd(0.5), optax.sgd(0.05), opaque_mode=True),
    "plateau": lambda: optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=3)),
    "plateau_of_steps": lambda: optax.MultiSteps(
        optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=3)), 2
    ),
    "polyak_sgd": lambda: optax.polyak_sgd(0.5),
    "polyak_inside": lambda: optax.apply_if_finite(optax.polyak_sgd(0.5), 3),
    "momo": lambda: optax.contrib.momo(0.5),
    "momo_adam": lambda: optax.contrib.momo_adam(0.05),
    "lbfgs": lambda: optax.lbfgs(),
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_every_kind_lower_the_loss(name):
    model, optimizer, batch = Linear(), OPTIMIZERS[name](), batch_of(8)
    state = state_of(model, optimizer)
    step = jax.jit(make_train_step(model, optimizer, as_float))
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        assert int(metrics["skipped"]) == 0
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["sophia", "dpsgd"])
def test_an_optimizer_that_asks_for_more_is_refused_in_a_line(name):
    optimizer = {
        "sophia": lambda: optax.contrib.sophia(0.1),
        "dpsgd": lambda: optax.contrib.dpsgd(0.1, 1.0, 0.1, 0),
    }[name]()
    state = state_of(Linear(), optimizer)
    with pytest.raises(UserError) as error:
        make_train_step(Linear(), optimizer, as_float)(state, batch_of(8))
    assert "\n" not in str(error.value)


def asked(**wanted):
    """An optimizer that notes what it is given, of those names, in its state, and moves by the gradient."""

    def update(updates, state, params=None, **extra):
        return jax.tree.map(jnp.negative, updates), {name: ask(extra, params) for name, ask in wanted.items()}

    nothing = {name: jnp.zeros(()) for name in wanted}
    return optax.GradientTransformationExtraArgs(lambda params: nothing, update)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_optimizers_are_given_is_of_the_whole_batch(devices, micro_batches):
    model, batch = Linear(), batch_of(8, mask=[1, 1, 1, 0, 1, 1, 0, 0])
    optimizer = asked(
        value=lambda extra, params: extra["value"],
        norm=lambda extra, params: optax.tree.norm(extra["grad"]),
        elsewhere=lambda extra, params: extra["value_fn"](jax.tree.map(lambda leaf: 2 * leaf, params)),
        slope=lambda extra, params: optax.tree.norm(jax.grad(extra["value_fn"])(params)),
        other_slope=lambda extra, params: optax.tree.norm(extra["grad_fn"](params, 0)),
    )
    state = state_of(model, optimizer)
    step = make_train_step(model, optimizer, as_float, micro_batches=micro_batches)
    if devices == 1:
        given = jax.jit(step)(state, batch)[0].opt_state
    else:
        shares = {name: leaf.reshape(devices, -1, *leaf.shape[1:]) for name, leaf in batch.items()}
        on_share = jax.vmap(lambda share: step(state, share, axis_name="d")[0].opt_state, axis_name="d")
        given = jax.tree.map(lambda leaf: leaf[-1], jax.jit(on_share)(shares))

    def mean_loss(params):
        losses = cross_entropy(
            model.apply({"params": params}, as_float(batch["image"]), train=True), batch["label"]
        )
        return (losses * batch["mask"]).sum() / 5

    value, gradient = jax.value_and_grad(mean_loss)(state.params)
    np.testing.assert_allclose(given["value"], value, rtol=1e-5)
    np.testing.assert_allclose(
        given["elsewhere"], mean_loss(jax.tree.map(lambda leaf: 2 * leaf, state.params)), rtol=1e-5
    )
    for name in ("norm", "slope", "other_slope"):
        np.testing.assert_allclose(given[name], optax.tree.norm(gradient), rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_no_array_gains_axes_silently(micro_batches):
    model = create_model("lenet5", norm="batch_norm", num_classes=7)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9))
    state = state_of(model, optimizer, shape=(12, 12, 1))
    state, batch = state.replace(ema=state.variables), batch_of(8, shape=(12, 12, 1))
    with jax.numpy_rank_promotion("raise"):
        step = make_train_step(model, optimizer, as_float, micro_batches=micro_batches, label_smoothing=0.1)
        after, _ = jax.eval_shape(step, state, batch)
        jax.eval_shape(make_eval_step(model, one_view), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
