"""Every name: counts as published, multiply-adds and activations, and what is known of it."""

import pytest

from flaxcnn import create_model, list_models, model_info
from flaxcnn.models.cost import measure

# torchvision's: trainable parameters, elements of running statistics, trainable arrays, 10^9 multiply-adds and
# 10^6 activations of one image of 224 pixels.
TORCHVISION = {
    "alexnet": (61_100_840, 0, 16, 0.714, 0.48),
    "vgg11": (132_863_336, 0, 22, 7.609, 7.43),
    "vgg13": (133_047_848, 0, 26, 11.308, 12.24),
    "vgg16": (138_357_544, 0, 32, 15.470, 13.55),
    "vgg19": (143_667_240, 0, 38, 19.632, 14.85),
    "vgg11_bn": (132_868_840, 5_504, 38, 7.609, 7.43),
    "vgg13_bn": (133_053_736, 5_888, 46, 11.308, 12.24),
    "vgg16_bn": (138_365_992, 8_448, 58, 15.470, 13.55),
    "vgg19_bn": (143_678_248, 11_008, 70, 19.632, 14.85),
    "googlenet": (6_624_904, 14_560, 173, 1.498, 3.23),
    "resnet18": (11_689_512, 9_600, 62, 1.814, 2.48),
    "resnet34": (21_797_672, 17_024, 110, 3.664, 3.74),
    "resnet50": (25_557_032, 53_120, 161, 4.089, 11.11),
    "resnet101": (44_549_160, 105_344, 314, 7.801, 16.23),
    "resnet152": (60_192_808, 151_424, 467, 11.514, 22.55),
    "resnext50_32x4d": (25_028_904, 68_224, 161, 4.230, 14.40),
    "resnext101_32x8d": (88_791_336, 202_880, 314, 16.414, 31.21),
    "resnext101_64x4d": (83_455_272, 202_880, 314, 15.460, 31.21),
    "wide_resnet50_2": (68_883_240, 68_224, 161, 11.398, 14.40),
    "wide_resnet101_2": (126_886_696, 137_856, 314, 22.753, 21.22),
    "densenet121": (7_978_856, 83_648, 364, 2.834, 6.90),
    "densenet161": (28_681_000, 219_936, 484, 7.728, 11.06),
    "densenet169": (14_149_480, 158_400, 508, 3.360, 7.30),
    "densenet201": (20_013_928, 229_056, 604, 4.291, 7.85),
    "regnet_x_400mf": (5_495_976, 37_856, 215, 0.414, 3.17),
    "regnet_x_800mf": (7_259_656, 37_312, 161, 0.800, 5.15),
    "regnet_x_1_6gf": (9_190_136, 43_504, 179, 1.603, 7.93),
    "regnet_x_3_2gf": (15_296_552, 62_560, 242, 3.177, 11.37),
    "regnet_x_8gf": (39_572_648, 90_464, 224, 7.995, 14.06),
    "regnet_x_16gf": (54_278_536, 111_168, 215, 15.941, 25.51),
    "regnet_x_32gf": (107_811_560, 162_016, 224, 31.736, 36.30),
    "regnet_y_400mf": (4_344_144, 27_152, 225, 0.402, 3.89),
    "regnet_y_800mf": (6_432_512, 30_432, 199, 0.834, 5.42),
    "regnet_y_1_6gf": (11_202_430, 52_672, 368, 1.612, 8.04),
    "regnet_y_3_2gf": (19_436_338, 66_160, 290, 3.176, 11.26),
    "regnet_y_8gf": (39_381_472, 86_528, 238, 8.473, 19.72),
    "regnet_y_16gf": (83_590_140, 122_816, 251, 15.912, 23.04),
    "regnet_y_32gf": (145_046_770, 158_288, 277, 32.280, 30.26),
    "regnet_y_128gf": (644_812_894, 415_072, 368, 127.518, 71.58),
}
# Trainable parameters of the others, from the papers, d2l.ai, and the layers written out by hand.
PARAMETERS = {
    "lenet5": 61_706,
    "lenet5_1998": 60_000,
    "alexnet_2012": 60_965_224,
    "alexnet_lrn": 50_844_008,
    "alexnet_d2l": 46_764_746,
    "alexnet_k5": 56_349_032,
    "alexnet_bn": 46_790_730,
    "nin": 1_992_166,
    "nin_cifar": 966_986,
    "googlenet_paper": 6_998_552,
    "resnet30": 15_853_328,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "wrn_28_10": 36_479_194,
    "wrn_40_4": 8_949_210,
    "resnext29_8x64d": 34_426_698,
    "densenet40_12": 1_019_722,
    "densenet_bc_100_12": 769_162,
    "densenet_bc_190_40": 25_624_430,
    "anynet": 179_290,
    "regnet_x_400mf_paper": 5_157_512,
    "regnet_y_800mf_paper": 6_263_168,
    "regnet_y_8gf_paper": 39_180_068,
}
# The same with other classes, channels or sizes.
VARIANTS = [
    ("alexnet_lrn", (227, 227, 3), {}, 62_378_344),
    ("alexnet_2012", (227, 227, 3), {"conv1_padding": 0}, 60_965_224),
    ("alexnet_d2l", (224, 224, 3), {}, 46_787_978),
    ("vgg11", (224, 224, 1), {"num_classes": 10}, 128_806_154),
    ("vgg16", (224, 224, 3), {"num_classes": 10}, 134_301_514),
    # d2l.ai's VGG for Fashion-MNIST: a quarter of the channels.
    (
        "vgg11",
        (224, 224, 1),
        {"num_classes": 10, "blocks": [[1, 16], [1, 32], [2, 64], [2, 128], [2, 128]]},
        43_093_322,
    ),
    ("nin", (224, 224, 3), {"num_classes": 1000}, 7_439_608),
    ("googlenet", (224, 224, 3), {"aux_logits": True}, 13_004_888),
    ("googlenet_paper", (224, 224, 3), {"num_classes": 10}, 5_983_802),
    ("googlenet_paper", (224, 224, 3), {"aux_logits": True}, 13_378_280),
    ("googlenet_paper", (96, 96, 1), {"num_classes": 10}, 5_977_530),
    # d2l.ai's ResNet-18, whose convolutions have biases and whose shortcuts have no norm.
    ("resnet18", (96, 96, 1), {"num_classes": 10, "use_bias": True, "shortcut": "strided"}, 11_178_378),
    # torchvision's ResNet-18 behind a CIFAR stem.
    ("resnet18", (32, 32, 3), {"num_classes": 10, "stem": "cifar"}, 11_173_962),
    # Option B shortcuts add 2,752 to the paper's CIFAR networks.
    ("resnet20", (32, 32, 3), {"shortcut": "projection"}, 269_722 + 2_752),
    ("densenet40_12", (32, 32, 3), {"depths": [32, 32, 32]}, 6_979_642),  # DenseNet (100, 12)
    ("wrn_28_10", (32, 32, 3), {"num_classes": 100}, 36_536_884),
    ("wrn_28_10", (32, 32, 3), {"depths": [2, 2, 2], "widths": [128, 256, 512]}, 10_961_370),  # WRN-16-8
    ("resnext29_8x64d", (32, 32, 3), {"groups": 16}, 68_155_210),
]
PYCLS = {  # the paper's own counts of the networks whose widths torchvision rounds otherwise: GMACs and Mact
    "regnet_x_400mf_paper": (0.398, 3.14),
    "regnet_y_800mf_paper": (0.797, 5.25),
    "regnet_y_8gf_paper": (7.963, 17.97),
}


def test_every_network_is_held_against_a_published_count():
    assert set(list_models()) == TORCHVISION.keys() | PARAMETERS.keys()


# One of each kind of block; the others follow in the slow tests.
QUICK = ("alexnet", "vgg11_bn", "googlenet", "resnet18", "resnext50_32x4d", "densenet121", "regnet_y_400mf")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(TORCHVISION)]
)
def test_counts_are_torchvisions(name):
    cost = model_info(name).cost
    parameters, statistics, tensors, macs, activations = TORCHVISION[name]
    assert (cost.parameters, cost.statistics, cost.tensors) == (parameters, statistics, tensors)
    assert round(cost.macs / 1e9, 3) == macs
    assert round(cost.activations / 1e6, 2) == activations


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_are_the_published_ones(name):
    info = model_info(name)
    assert info.parameters == PARAMETERS[name]
    if name in PYCLS:
        assert (round(info.macs / 1e9, 3), round(info.activations / 1e6, 2)) == PYCLS[name]


@pytest.mark.parametrize(("name", "shape", "fields", "parameters"), VARIANTS)
def test_parameters_of_variants_are_the_published_ones(name, shape, fields, parameters):
    assert measure(create_model(name, **fields), shape).parameters == parameters


def test_counts_of_googlenet_with_auxiliary_heads():
    cost = measure(create_model("googlenet", aux_logits=True), (224, 224, 3))
    assert (cost.parameters, cost.statistics, cost.tensors) == (13_004_888, 15_072, 187)
    assert round(cost.macs / 1e9, 3) == 1.498  # the heads do not run in inference


def test_statistics_of_alexnet_bn():
    assert model_info("alexnet_bn").cost.statistics == 2_752


def test_layers_add_up_and_scale_with_the_batch():
    one, four = (measure(create_model("alexnet"), (224, 224, 3), batch=batch) for batch in (1, 4))
    first = four.layers[0]
    assert (first.path, first.output_shape, first.window) == ("conv1/conv", (4, 55, 55, 64), (11, 11))
    assert first.parameters == 11 * 11 * 3 * 64 + 64
    assert first.macs == 4 * 55 * 55 * 64 * 11 * 11 * 3
    assert first.output_bytes == 4 * 4 * 55 * 55 * 64
    assert (four.parameters, four.macs, four.activations) == (one.parameters, 4 * one.macs, 4 * one.activations)
    assert sum(layer.parameters for layer in one.layers) == one.parameters


def test_what_is_known_of_a_network_with_published_weights():
    info = model_info("resnet50")
    assert info.accuracy == "80.858 / 95.434 % top-1 / top-5 on ImageNet (IMAGENET1K_V2)"
    assert [weights.tag for weights in info.weights] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert (info.input_shape, info.minimum_size, info.num_classes) == ((224, 224, 3), 1, 1000)
    assert (info.mean, info.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert info.class_names[207] == "golden retriever"
    assert "Deep Residual Learning" in info.paper


def test_what_is_known_of_a_network_without():
    info = model_info("resnet20")
    assert info.accuracy == "8.75 % error on CIFAR-10 with crops and flips"
    assert (info.weights, info.mean, info.std, info.class_names) == ((), None, None, None)
