import re

import pytest

from flaxcnn.models.published import BASE_URL, MEAN, PUBLISHED, STD, default_weights, imagenet_classes

EVERY = [(name, weights) for name, all_weights in PUBLISHED.items() for weights in all_weights]
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
SWAG_E2E, SWAG_LINEAR = "IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1"


def test_every_network_of_the_families_has_weights():
    sizes = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
    assert set(PUBLISHED) == {
        *("alexnet", "googlenet"),
        *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
        *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
        *(f"regnet_{kind}_{size}" for kind in "xy" for size in sizes),
        "regnet_y_128gf",
    }


@pytest.mark.parametrize(("name", "weights"), EVERY)
def test_every_entry_is_sane(name, weights):
    assert re.fullmatch(rf"{name}(-owt|_swag|_lc_swag)?-[0-9a-f]{{8}}\.pth", weights.file)
    assert weights.url == f"{BASE_URL}{weights.file}"
    assert 56 < weights.top1 < weights.top5 < 99
    assert weights.crop in (224, 384) and weights.crop <= weights.resize <= 384
    assert ("SWAG" in weights.tag) == ("_swag-" in weights.file) == (weights.interpolation == "bicubic")
    assert weights.interpolation in ("bilinear", "bicubic")


def test_entries_are_distinct_and_in_order():
    assert len({weights.file for _, weights in EVERY}) == len(EVERY) == 65
    orders = {tuple(weights.tag for weights in entries) for entries in PUBLISHED.values()}
    assert orders == {(V1,), (V1, V2), (V1, V2, SWAG_E2E, SWAG_LINEAR), (SWAG_E2E, SWAG_LINEAR)}


@pytest.mark.parametrize(
    ("name", "index", "file", "top1", "top5", "resize", "crop"),
    [
        ("alexnet", 0, "alexnet-owt-7be5be79.pth", 56.522, 79.066, 256, 224),
        ("vgg16_bn", 0, "vgg16_bn-6c64b313.pth", 73.360, 91.516, 256, 224),
        ("googlenet", 0, "googlenet-1378be20.pth", 69.778, 89.530, 256, 224),
        ("resnet50", 0, "resnet50-0676ba61.pth", 76.130, 92.862, 256, 224),
        ("resnet50", 1, "resnet50-11ad3fa6.pth", 80.858, 95.434, 232, 224),
        ("resnext101_64x4d", 0, "resnext101_64x4d-173b62eb.pth", 83.246, 96.454, 232, 224),
        ("densenet161", 0, "densenet161-8d451a50.pth", 77.138, 93.560, 256, 224),
        ("regnet_x_8gf", 1, "regnet_x_8gf-2b70d774.pth", 81.682, 95.678, 232, 224),
        ("regnet_y_128gf", 0, "regnet_y_128gf_swag-c8ce3e52.pth", 88.228, 98.682, 384, 384),
        ("regnet_y_32gf", 3, "regnet_y_32gf_lc_swag-e1583746.pth", 84.622, 97.480, 224, 224),
    ],
)
def test_entries_are_as_published(name, index, file, top1, top5, resize, crop):
    weights = PUBLISHED[name][index]
    assert (weights.file, weights.top1, weights.top5) == (file, top1, top5)
    assert (weights.resize, weights.crop) == (resize, crop)


def test_the_default_is_the_newest_that_is_free_to_use():
    assert default_weights("resnet18").tag == V1
    assert default_weights("resnet50").tag == V2
    assert default_weights("regnet_y_16gf").tag == V2
    assert default_weights("regnet_y_128gf").tag == SWAG_E2E


def test_normalization_is_that_of_imagenet():
    assert MEAN == (0.485, 0.456, 0.406) and STD == (0.229, 0.224, 0.225)


def test_the_classes_are_imagenets():
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert all(name and name == name.strip() for name in names)
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {index: names[index] for index in known} == known
    # Two pairs of classes go by one word each.
    assert (names[134], names[517], names[638], names[639]) == (
        "crane bird",
        "crane",
        "maillot",
        "maillot tank suit",
    )
