"""The recipes' networks on real images: each learns sixteen of them by heart, each recipe runs from end to end."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
import sklearn.datasets

from flaxcnn import create_model
from flaxcnn.flags import load_config
from flaxcnn.training import loop
from tests.conftest import ROOT

RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py"))
FAMILIES = sorted(path.stem for path in (ROOT / "configs" / "fashion_mnist").glob("*.py"))


def sixteen_digits(size):
    """The first sixteen handwritten digits of scikit-learn, enlarged and normalised."""
    digits = sklearn.datasets.load_digits()
    images = jnp.asarray(digits.images[:16, :, :, None] / 16 - 0.3, jnp.float32)
    return jax.image.resize(images, (16, size, size, 1), "bilinear"), jnp.asarray(digits.target[:16])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FAMILIES)
def test_every_family_learns_sixteen_images_by_heart(recipe):
    config = load_config(ROOT / "configs" / "fashion_mnist" / f"{recipe}.py")
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


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES)
def test_every_recipe_runs_from_end_to_end(path, data_dir, tmp_path):
    config = load_config(ROOT / path)
    config.data.name, config.data.data_dir = "digits", str(data_dir)
    config.data.image_size = config.data.image_size or 32
    config.data.resize = "bilinear"
    config.duration, config.batch_size, config.parallel.strategy = "3 steps", 16, "jit"
    result = loop.fit(config, tmp_path / "run", console=rich.console.Console(file=io.StringIO()))
    assert result.count == 359
    assert np.isfinite(result.loss)
