"""Recipes are found by path and by name, and what is wrong with one is one line."""

import pytest

from flaxcnn import UserError
from flaxcnn.config import load_config, to_dict
from flaxcnn.config.recipes import find_recipe, recipe_name, recipe_names
from tests.conftest import ROOT

DEFAULT = ROOT / "configs" / "digits_lenet5.py"


def test_every_recipe_has_a_name_by_which_it_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = sorted((ROOT / "configs").rglob("*.py"))
    assert sorted(map(find_recipe, recipe_names())) == files
    for name in recipe_names():
        assert recipe_name(find_recipe(name)) == name
        assert find_recipe(f"configs/{name}.py") == ROOT / "configs" / f"{name}.py"


def test_the_name_of_a_file_is_its_path_below_configs():
    assert recipe_name(DEFAULT) == recipe_name(DEFAULT.relative_to(ROOT)) == "digits_lenet5"
    assert recipe_name(ROOT / "configs" / "mnist" / "lenet5.py") == "mnist/lenet5"
    assert recipe_name(ROOT.parent / "mine" / "configs" / "a" / "b.py") == "a/b"
    assert recipe_name(ROOT.parent / "mine" / "b.py") == "b"


def test_a_name_and_a_path_give_the_same_configuration():
    assert to_dict(load_config("fashion_mnist/lenet5")) == to_dict(
        load_config(ROOT / "configs" / "fashion_mnist" / "lenet5.py")
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet5", r"did you mean mnist/lenet5, fashion_mnist/lenet5\?"),
        ("fashion_mnist/lenet6.py", r"did you mean fashion_mnist/lenet5, "),
        ("configs/cifar10/resnet21.py", r"did you mean cifar10/resnet20\?"),
        ("imagnet/resnet50", r"did you mean imagenet/resnet50\?"),
        ("digits", r"did you mean digits_lenet5\?"),
        ("nothing like it", r"flaxcnn train --help lists the recipes"),
        ("../configs/mnist/lenet5.py", r"no recipe of that name; did you mean mnist/lenet5"),
        ("gs://bucket/lenet5", r"is an address"),
    ],
)
def test_an_unknown_name_gets_the_names_that_are_near(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        load_config(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(): return 3", "must return a TrainConfig, got int"),
        ("import nothing_like_it", "fails: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def get_config(): pass\nget_config(", "fails: SyntaxError"),
        (
            "from flaxcnn.config import TrainConfig\ndef get_config(): return TrainConfig(epochs=3)",
            "unexpected keyword argument 'epochs'",
        ),
        ("", "has no attribute 'get_config'"),
        ("raise ValueError('one\\ntwo')", "fails: ValueError: one"),
        ("raise SystemExit(3)", "fails: SystemExit: 3"),
    ],
)
def test_a_broken_configuration_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load_config(path)
    assert "\n" not in str(raised.value)
