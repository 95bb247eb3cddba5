"""Records what torchvision computes, for the tests to compare flaxcnn with; they themselves need no torch.

From the root of the repository, with a Python that has torch:

    /usr/bin/python3 -m tests.reference.record_torchvision [NAME ...] [--what forward|step|pooling|all]

The recordings were made with torch 1.13, torchvision 0.14 and numpy 1.24, in float64. Weights and images come from
formula.py. The names restrict `forward` and `step`; entries recorded earlier under other names stay. A size is
BATCHxHEIGHTxWIDTH, a shape of a map is NHWC, a fingerprint is formula.fingerprint.

forward.json, evaluation mode, 1000 classes (`googlenet` without auxiliary heads), by name:
    parameters, tensors: trainable elements, and the tensors that hold them
    running_statistics: elements of all running means and variances
    entries, entries_crc32: of the state_dict: how many, and zlib.crc32 of its "name:64x3x7x7" lines sorted by name
    sizes: {size: {"logits": {shape, first, fingerprint}, "stages": {stage: {shape, fingerprint}}}},
        where `first` holds 8 logits of the first image
    `googlenet_train`: with auxiliary heads, in training mode without dropout; sizes: {size: {logits, aux1, aux2}},
        aux1 and aux2 being the outputs of the modules of these names

step.json, one step of SGD (momentum 0.9, weight decay 1e-4 on everything) in training mode without dropout, on
formula.images(4, 64, 64) with 10 classes, by name:
    loss: before the step; for googlenet the main one + 0.3 times each auxiliary one
    changes: {torch name: [root mean square, formula.projection(change, torch name)]} of new - old,
        for parameters, running means and running variances

pooling.json, by case: a list whose item n - 1 belongs to the size n = 1..40, [height, width, root mean square,
projection1] of the output, or null where torch refuses. The cases, with their inputs:
    "max k3 s2 p1", "max k3 s2 p1 ceil": kernel, stride, padding, ceil_mode; values("pooling{n}", (1, n, n, 3))
    "avg k3 s2 p1", ... "avg k3 s2 p1 ceil nopad": the same; "nopad" is count_include_pad=False
    "adaptive 5x3": adaptive average to height x width, of the same
    "lrn 5 0.0001 0.75 1.0": size, alpha, beta, k; 3 * values("lrn{n}", (2, 3, 3, n))
    "lrn_map 5 0.0005 0.75 2.0": the same; 3 * values("lrn_map{n}", (1, n, n, 7))
"""

import argparse
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from tests.reference import formula

FOLDER = Path(__file__).parent
FORWARD_NAMES = (
    "alexnet",
    *(f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)),
    "googlenet",
    "googlenet_train",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf")),
)
FORWARD_SIZES = ((1, 224, 224), (2, 97, 75))  # the usual one, and one that shows padding and rounding mistakes
STEP_NAMES = (
    *("alexnet", "vgg11_bn", "googlenet", "resnet18", "resnext50_32x4d", "densenet121"),
    *("regnet_x_400mf", "regnet_y_400mf"),
)
TRAINING_SIZE = (4, 64, 64)
LABELS = (3, 1, 4, 1)
POOLING_SIZES = range(1, 41)
POOLING_WINDOWS = ((2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0), (5, 3, 2), (2, 1, 0))
ADAPTIVE_OUTPUTS = ((6, 6), (7, 7), (4, 4), (1, 1), (5, 3))
LRN_ON_CHANNELS = ((5, 1e-4, 0.75, 1.0), (5, 5e-4, 0.75, 2.0), (3, 1.0, 0.5, 1.0), (4, 0.3, 0.75, 2.0))
LRN_ON_MAPS = (5, 5e-4, 0.75, 2.0)


def build(name: str, num_classes: int = 1000, auxiliary: bool = False) -> nn.Module:
    """A torchvision network with the weights of formula.py, in evaluation mode."""
    options = {"aux_logits": auxiliary, "init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(num_classes=num_classes, **options)
    for key, entry in model.state_dict().items():
        entry.copy_(torch.from_numpy(formula.parameter(key, tuple(entry.shape))))
    return model.eval()


def train_without_dropout(model: nn.Module) -> None:
    """Training mode, but for the one thing in it that is random."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def to_torch(maps: np.ndarray) -> Tensor:
    return torch.from_numpy(maps).permute(0, 3, 1, 2).contiguous()


def to_numpy(output: Tensor) -> np.ndarray:
    return (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).detach().numpy()


def stage_modules(name: str, model: nn.Module) -> dict[str, str]:
    """The torch modules whose outputs are the stages of our network, by stage."""
    if name == "alexnet":
        return {"conv1": "features.1", "pool1": "features.2", "pool2": "features.5", "pool5": "features.12"}
    if name.startswith("vgg"):
        pools = [index for index, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
        return {f"stage{k}": f"features.{index}" for k, index in enumerate(pools, start=1)}
    if name == "googlenet":
        inceptions = [f"inception{suffix}" for suffix in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
        pools = {f"pool{k}": f"maxpool{k}" for k in (1, 2, 3, 4)}
        return {"conv3": "conv3", **pools, **{inception: inception for inception in inceptions}}
    if name.startswith("densenet"):
        blocks = {f"block{k}": f"features.denseblock{k}" for k in (1, 2, 3, 4)}
        transitions = {f"transition{k}": f"features.transition{k}" for k in (1, 2, 3)}
        return {"stem": "features.pool0", **blocks, **transitions, "norm": "features.norm5"}
    if name.startswith("regnet"):
        return {"stem": "stem", **{f"stage{k}": f"trunk_output.block{k}" for k in (1, 2, 3, 4)}}
    return {"stem": "maxpool", **{f"stage{k}": f"layer{k}" for k in (1, 2, 3, 4)}}


def watch(model: nn.Module, stage: str, module: str, record: Callable[[np.ndarray], Any], into: dict) -> None:
    """Puts `record(output)` of a module into a dictionary at every call of the model, maps as NHWC."""

    def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        # Recorded here and now, since a later module may work in place.
        if module == "features.norm5":
            output = output.relu()  # DenseNet's last ReLU is no module
        into[stage] = record(to_numpy(output))

    model.get_submodule(module).register_forward_hook(hook)


def record_map(array: np.ndarray) -> dict[str, Any]:
    return {"shape": array.shape, "fingerprint": formula.fingerprint(array)}


def record_logits(logits: np.ndarray) -> dict[str, Any]:
    return {"first": logits[0, :8].tolist(), **record_map(logits)}


def record_counts(model: nn.Module) -> dict[str, int]:
    parameters = list(model.parameters())
    entries = {name: "x".join(map(str, entry.shape)) for name, entry in model.state_dict().items()}
    lines = "\n".join(f"{name}:{shape}" for name, shape in sorted(entries.items()))
    return {
        "parameters": sum(tensor.numel() for tensor in parameters),
        "tensors": len(parameters),
        "running_statistics": sum(tensor.numel() for tensor in model.buffers() if tensor.ndim == 1),
        "entries": len(entries),
        "entries_crc32": zlib.crc32(lines.encode()),
    }


def size_text(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))


@torch.no_grad()
def record_forward(name: str) -> dict[str, Any]:
    if name == "googlenet_train":
        return record_googlenet_train()
    model = build(name)
    stages: dict[str, Any] = {}
    for stage, module in stage_modules(name, model).items():
        watch(model, stage, module, record_map, stages)
    sizes = {}
    for size in FORWARD_SIZES:
        logits = model(to_torch(formula.images(*size)))
        sizes[size_text(size)] = {"logits": record_logits(logits.numpy()), "stages": dict(stages)}
    return {**record_counts(model), "sizes": sizes}


def record_googlenet_train() -> dict[str, Any]:
    model = build("googlenet", auxiliary=True)
    train_without_dropout(model)
    outputs: dict[str, Any] = {}
    # Hooks, because torchvision's named tuple swaps the names of the auxiliary logits.
    for output, module in (("logits", "fc"), ("aux1", "aux1"), ("aux2", "aux2")):
        watch(model, output, module, record_logits, outputs)
    model(to_torch(formula.images(*TRAINING_SIZE)))
    return {**record_counts(model), "sizes": {size_text(TRAINING_SIZE): outputs}}


def record_step(name: str) -> dict[str, Any]:
    model = build(name, num_classes=10, auxiliary=True)
    train_without_dropout(model)
    before = {key: entry.clone() for key, entry in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    output = model(to_torch(formula.images(*TRAINING_SIZE)))
    main, *auxiliary = output if name == "googlenet" else (output,)
    labels = torch.tensor(LABELS)
    loss = functional.cross_entropy(main, labels)
    for logits in auxiliary:
        loss = loss + 0.3 * functional.cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()

    changes = {}
    for key, entry in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            change = (entry - before[key]).numpy()
            changes[key] = [float(np.sqrt(np.mean(change**2))), formula.projection(change, key)]
    return {"loss": loss.item(), "changes": changes}


def record_pooling() -> dict[str, list]:
    maps = [to_torch(formula.values(f"pooling{n}", (1, n, n, 3))) for n in POOLING_SIZES]
    cases = {}
    for (kernel, stride, padding), ceil in itertools.product(POOLING_WINDOWS, (False, True)):
        window = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
        case = f"k{kernel} s{stride} p{padding}" + " ceil" * ceil
        average = partial(functional.avg_pool2d, **window)
        cases[f"max {case}"] = record_sizes(partial(functional.max_pool2d, **window), maps)
        cases[f"avg {case}"] = record_sizes(average, maps)
        cases[f"avg {case} nopad"] = record_sizes(partial(average, count_include_pad=False), maps)
    for height, width in ADAPTIVE_OUTPUTS:
        adaptive = partial(functional.adaptive_avg_pool2d, output_size=(height, width))
        cases[f"adaptive {height}x{width}"] = record_sizes(adaptive, maps)

    channels = [to_torch(3 * formula.values(f"lrn{n}", (2, 3, 3, n))) for n in POOLING_SIZES]
    for options in LRN_ON_CHANNELS:
        cases[" ".join(map(str, ("lrn", *options)))] = record_sizes(normalisation(*options), channels)
    maps = [to_torch(3 * formula.values(f"lrn_map{n}", (1, n, n, 7))) for n in POOLING_SIZES]
    cases[" ".join(map(str, ("lrn_map", *LRN_ON_MAPS)))] = record_sizes(normalisation(*LRN_ON_MAPS), maps)
    return cases


def normalisation(size: int, alpha: float, beta: float, k: float) -> Callable[[Tensor], Tensor]:
    return partial(functional.local_response_norm, size=size, alpha=alpha, beta=beta, k=k)


def record_sizes(operation: Callable[[Tensor], Tensor], inputs: Iterable[Tensor]) -> list[list[float] | None]:
    recorded: list[list[float] | None] = []
    for tensor in inputs:
        try:
            output = to_numpy(operation(tensor))
        except RuntimeError:  # too small for the window
            recorded.append(None)
        else:
            recorded.append([*output.shape[1:3], *formula.fingerprint(output)[:2]])
    return recorded


def rounded(value: Any, digits: int) -> Any:
    """The same tree with its floating point numbers rounded to significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return value


def save(file_name: str, entries: dict[str, Any], digits: int) -> None:
    """Merges entries into a JSON file, one a line."""
    path = FOLDER / file_name
    merged = json.loads(path.read_text()) if path.exists() else {}
    merged.update(rounded(entries, digits))
    compact = partial(json.dumps, sort_keys=True, separators=(",", ":"))
    lines = ",\n".join(f"{compact(key)}:{compact(merged[key])}" for key in sorted(merged))
    path.write_text(f"{{\n{lines}\n}}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help="networks to record (default: all)")
    parser.add_argument("--what", choices=("forward", "step", "pooling", "all"), default="all")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(FORWARD_NAMES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")

    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    for what, names, record, digits in (
        ("forward", FORWARD_NAMES, record_forward, 15),
        ("step", STEP_NAMES, record_step, 12),
    ):
        if arguments.what not in (what, "all"):
            continue
        for name in names:
            if not arguments.names or name in arguments.names:
                start = time.monotonic()
                save(f"{what}.json", {name: record(name)}, digits)
                print(f"{what} {name}: {time.monotonic() - start:.1f} s", flush=True)
    if arguments.what in ("pooling", "all"):
        save("pooling.json", record_pooling(), 12)


if __name__ == "__main__":
    main()
