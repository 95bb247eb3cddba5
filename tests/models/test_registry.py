import jax
import jax.numpy as jnp
import pytest

from flaxcnn import UserError, create_model, list_models, model_info


def test_names_match_wildcards():
    assert list_models("lenet5") == ["lenet5"]
    assert list_models("lenet*") == ["lenet5", "lenet5_1998"]
    assert list_models("no such*") == []
    assert set(list_models("lenet*")) <= set(list_models())


@pytest.mark.parametrize("name", list_models())
def test_every_model_is_described(name):
    info = model_info(name)
    assert info.name == name and info.summary and info.paper
    assert min(info.input_shape[:2]) >= info.minimum_size
    assert create_model(name).num_classes == info.num_classes


@pytest.mark.parametrize("name", list_models())
def test_every_model_names_itself_and_its_minimum_where_images_are_smaller(name):
    model, smallest = create_model(name), model_info(name).minimum_size
    assert smallest == model.minimum_size
    message = (
        rf"^{type(model).__name__} takes images of at least {smallest}x{smallest} pixels, got 99x{smallest - 1}"
    )
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 99, smallest - 1, 3)), train=False))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("lenet6"), "unknown model 'lenet6'; did you mean lenet5"),
        (lambda: model_info("resnet"), "unknown model 'resnet'"),
        (lambda: create_model("lenet5", nrom="batch_norm"), "lenet5 has no field 'nrom'; did you mean norm"),
        (lambda: create_model("lenet5", norm="batchnorm"), "write one of batch_norm, layer_norm, group_norm"),
        (lambda: create_model("lenet5", dtype="float31"), "'float31' is not a floating dtype"),
        (lambda: create_model("lenet5", param_dtype="int32"), "'int32' is not a floating dtype"),
        (lambda: create_model("lenet5", norm=3), "lenet5 has no norm 3; write one of batch_norm"),
        (
            lambda: create_model("lenet5", num_classes="ten"),
            "num_classes of lenet5 takes a whole number, got 'ten'",
        ),
        (lambda: create_model("lenet5", num_classes=-1), "must be 0 .* or more, got -1"),
        (lambda: create_model("lenet5", num_classes=True), "takes a whole number, got True"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_write(call, message):
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
