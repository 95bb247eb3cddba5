"""Published weights fitted to classes and channels, from a file; downloads are tested in test_download.py."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from flaxcnn import UserError, create_model, load_pretrained
from flaxcnn.models import published
from flaxcnn.weights.convert import from_torch, torch_shapes
from tests.reference import formula
from tests.variables import random_images


def state_dict(name, **fields):
    return {
        key: value.astype(np.float32) for key, value in formula.state_dict(torch_shapes(name, **fields)).items()
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of weights for resnet18, as someone else would hand it on."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.numpy.save_file(state_dict("resnet18"), path)
    return path


def logits(model, variables, images):
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)


def test_a_local_file_needs_no_network(file):
    model, variables = load_pretrained("resnet18", file)
    expected = from_torch("resnet18", state_dict("resnet18"))
    assert model == create_model("resnet18")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_other_classes_start_a_new_head_and_keep_the_rest(file):
    whole = load_pretrained("resnet18", file)[1]
    model, variables = load_pretrained("resnet18", str(file), num_classes=7)
    head = variables["params"].pop("head")
    assert head["kernel"].shape == (512, 7)
    assert np.abs(head["kernel"]).max() <= 512**-0.5 and np.std(head["kernel"]) > 0.5 * 512**-0.5
    whole["params"].pop("head")
    jax.tree.map(np.testing.assert_array_equal, variables, whole)
    assert model.num_classes == 7
    other = load_pretrained("resnet18", file, num_classes=7, key=jax.random.key(1))[1]
    assert not np.array_equal(other["params"]["head"]["kernel"], head["kernel"])


def test_no_classes_leave_the_pooled_features(file):
    model, variables = load_pretrained("resnet18", file, num_classes=0)
    assert "head" not in variables["params"]
    whole = load_pretrained("resnet18", file)
    images = random_images(2, 40, 40, 3).astype(jnp.float32)
    pooled, head = logits(model, variables, images), whole[1]["params"]["head"]
    assert pooled.shape == (2, 512)
    np.testing.assert_allclose(pooled @ head["kernel"] + head["bias"], logits(*whole, images), rtol=1e-4, atol=1e-4)


def test_one_channel_answers_as_gray_in_three(file):
    gray = random_images(2, 40, 40, 1).astype(jnp.float32)
    answers = logits(*load_pretrained("resnet18", file, channels=1), gray)
    expected = logits(*load_pretrained("resnet18", file), jnp.repeat(gray, 3, axis=-1))
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4)


def test_five_channels_repeat_and_scale_the_kernel(file):
    kernel = load_pretrained("resnet18", file)[1]["params"]["stem"]["conv"]["kernel"]
    wide = load_pretrained("resnet18", file, channels=5)[1]["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(wide, kernel[:, :, [0, 1, 2, 0, 1]] * 0.6, rtol=1e-6)


def test_a_file_with_its_own_classes_keeps_them(tmp_path):
    path = tmp_path / "flowers.safetensors"
    safetensors.numpy.save_file(state_dict("resnet18", num_classes=12), path)
    model, variables = load_pretrained("resnet18", path, param_dtype="bfloat16")
    assert model.num_classes == 12
    assert variables["params"]["head"]["kernel"].shape == (512, 12)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["batch_stats"])} == {jnp.dtype("float32")}


def test_a_file_with_one_channel_keeps_it_unless_told_otherwise(tmp_path):
    path = tmp_path / "gray.safetensors"
    safetensors.numpy.save_file(state_dict("resnet18", channels=1), path)
    kernels = [
        load_pretrained("resnet18", path, channels=channels)[1]["params"]["stem"]["conv"]["kernel"]
        for channels in (None, 1, 3)
    ]
    assert [kernel.shape[2] for kernel in kernels] == [1, 1, 3]
    np.testing.assert_allclose(kernels[2], np.repeat(kernels[0], 3, axis=2) / 3, rtol=1e-6)


@pytest.mark.slow
def test_googlenet_maps_imagenets_normalization_and_drops_auxiliary_heads(tmp_path):
    path = tmp_path / "googlenet.safetensors"
    safetensors.numpy.save_file(state_dict("googlenet", aux_logits=True), path)
    model, variables = load_pretrained("googlenet", path)
    assert not {"aux1", "aux2"} & (variables["params"].keys() | variables["batch_stats"].keys())
    pixels = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    normalized = (pixels - jnp.asarray(published.MEAN)) / jnp.asarray(published.STD)
    plain = create_model("googlenet")
    expected = logits(plain, variables, 2 * pixels - 1)
    np.testing.assert_allclose(logits(model, variables, normalized), expected, rtol=1e-3, atol=1e-4)

    for fields in ({"aux_logits": False}, {"aux_logits": True, "num_classes": 0}, {"channels": 1}):
        model, variables = load_pretrained("googlenet", path, **fields)
        gray = jax.ShapeDtypeStruct((1, 32, 32, fields.get("channels", 3)), jnp.float32)
        expected = jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x, train=False), gray)
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
        assert model.transform_input == ("channels" not in fields)

    model, variables = load_pretrained("googlenet", path, aux_logits=True, num_classes=5)
    assert model.aux_logits
    assert [variables["params"][name]["head"]["bias"].shape for name in ("aux1", "aux2")] == [(5,), (5,)]
    np.testing.assert_array_equal(
        variables["params"]["aux2"]["fc"]["bias"], state_dict("googlenet", aux_logits=True)["aux2.fc1.bias"]
    )


def test_a_tag_is_fetched_from_the_cache_by_its_hash(file, tmp_path, monkeypatch):
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    weights = published.Weights("IMAGENET1K_V9", f"resnet18-{digits}.pth", 1, 2, 256, 224, "bilinear")
    monkeypatch.setitem(published.PUBLISHED, "resnet18", (weights,))
    monkeypatch.setenv("FLAXCNN_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / weights.file).write_bytes(file.read_bytes())
    for source in ("default", "IMAGENET1K_V9"):
        variables = load_pretrained("resnet18", source)[1]
        jax.tree.map(np.testing.assert_array_equal, variables, load_pretrained("resnet18", file)[1])


def test_mistakes_are_one_line(file, tmp_path):
    with pytest.raises(UserError, match="no weights of resnet20 are published"):
        load_pretrained("resnet20")
    with pytest.raises(
        UserError, match=r"IMAGENET1K_V3 is neither a file nor .* resnet18; did you mean IMAGENET1K_V1"
    ):
        load_pretrained("resnet18", "IMAGENET1K_V3")
    with pytest.raises(UserError, match="do not fit resnet34: missing: "):
        load_pretrained("resnet34", file)
    with pytest.raises(UserError, match="channels must be 1 or more, got 0"):
        load_pretrained("resnet18", file, channels=0)
    with pytest.raises(UserError, match="torchvision's network has no layer like norm"):
        load_pretrained("resnet18", file, block="preactivation")
    with pytest.raises(UserError, match="resnet18 has no field 'dropout'"):
        load_pretrained("resnet18", file, dropout=0.5)
