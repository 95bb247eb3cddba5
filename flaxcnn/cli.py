"""The verbs of `python -m flaxcnn`: list, summary, prepare, evaluate, predict, export."""

import argparse
import ast
import contextlib
import functools
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from flaxcnn.errors import UserError, nearest

# Pictures that cannot be read are named up to this number, and counted beyond.
_NAMED = 20


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (python -m flaxcnn --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, or 2 after a mistake of the user's."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
    except (UserError, OSError) as error:  # OSError: a folder that may not be entered, a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m flaxcnn", description="Networks, data sets, evaluation, prediction.")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)

    names = verbs.add_parser("list", help="the networks there are")
    names.add_argument(
        "pattern", metavar="PATTERN", nargs="?", default="*", help="shell wildcard, such as 'resnet*'"
    )
    names.set_defaults(run=_list)

    summary = verbs.add_parser("summary", help="each layer of a network, in order, and what it costs")
    summary.add_argument("name", metavar="NAME", help="such as resnet50")
    summary.add_argument("--image-size", type=_size, metavar="SIZE", help="224 or 224x160; default: the network's")
    summary.add_argument("--channels", type=_positive, help="of the images; default: the network's")
    summary.add_argument("--batch", type=_positive, metavar="IMAGES", default=1, help="images at a time")
    # Both write into one list, of which the last counts.
    summary.add_argument(
        "--num-classes",
        type=_num_classes,
        dest="fields",
        action="append",
        default=[],
        help="0 for features",
    )
    summary.add_argument(
        "--set",
        type=_field,
        metavar="FIELD=VALUE",
        dest="fields",
        action="append",
        default=[],
        help="a field of the network: norm=batch_norm, depths=1,1,1, dtype=bfloat16",
    )
    summary.set_defaults(run=_summary)

    prepare = verbs.add_parser("prepare", help="download and prepare a TFDS data set")
    prepare.add_argument("name", metavar="NAME", help="such as fashion_mnist, cifar10, emnist/letters")
    prepare.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="folder that already holds the files to download",
    )
    prepare.add_argument("--data-dir", metavar="DIR", help="where prepared sets go (default: TFDS's own folder)")
    prepare.add_argument(
        "--resize",
        type=_positive,
        metavar="PIXELS",
        help="make a set NAME_PIXELS of the same pictures, or of folder:PATH, whose shorter side is that at most",
    )
    prepare.add_argument(
        "--bad-images",
        choices=("stop", "skip"),
        help="with --resize: what a picture that cannot be read does; skip leaves it out (default: stop)",
    )
    prepare.set_defaults(run=_prepare)

    evaluate = verbs.add_parser("evaluate", help="evaluate what a work directory holds")
    evaluate.add_argument("workdir", metavar="WORKDIR", type=Path)
    evaluate.add_argument("--split", help="of the data set (default: the run's test split)")
    evaluate.add_argument("--batch-size", type=_positive, help="images at a time; changes no accuracy")
    evaluate.add_argument("--data-dir", metavar="DIR", help="where prepared sets lie (default: as in training)")
    evaluate.add_argument(
        "--bad-images", choices=("stop", "skip"), help="what becomes of pictures that cannot be read"
    )
    evaluate.set_defaults(run=_evaluate)

    predict = verbs.add_parser("predict", help="classify pictures with what a work directory holds")
    predict.add_argument("workdir", metavar="WORKDIR", type=Path)
    predict.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    predict.set_defaults(run=_predict)

    export = verbs.add_parser("export", help="write a network as a program that needs only JAX, or as ONNX")
    export.add_argument("source", metavar="NAME|WORKDIR", help="a network, such as resnet50, or a work directory")
    export.add_argument(
        "file", metavar="FILE", type=Path, help="to write, as ONNX if it ends in .onnx; FILE.json names the classes"
    )
    export.add_argument(
        "--weights",
        metavar="TAG|FILE|random",
        help="of NAME: published ones (default: torchvision's), a file, or random, to measure how fast it is",
    )
    export.add_argument(
        "--image-size", type=_size_or_any, metavar="SIZE", help="of NAME: 224, 224x160 or any; default: its own"
    )
    export.set_defaults(run=_export)

    for verb in (evaluate, predict, export):
        verb.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
        verb.add_argument("--averaged", action="store_true", help="use the averaged parameters")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more, below a million")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    """Returns height and width of "224" or "224x160"."""
    height, *width = text.split("x", 1)
    return _positive(height), _positive(*width or [height])


def _size_or_any(text: str) -> tuple[int | None, int | None]:
    return (None, None) if text == "any" else _size(text)


def _num_classes(text: str) -> tuple[str, int]:
    return "num_classes", 0 if text == "0" else _positive(text)


def _field(text: str) -> tuple[str, Any]:
    """Returns name and value of a field: a number, lists ("1,1,1", "[[1, 64], [2, 128]]"), true, none or text."""
    name, equals, value = text.partition("=")
    if not equals or name in ("", "name"):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as norm=batch_norm")
    for parse in (ast.literal_eval, json.loads, lambda value: json.loads(f"[{value}]")):
        with contextlib.suppress(ValueError, SyntaxError):
            return name, parse(value)
    return name, None if value == "none" else value


def _console():
    """Returns a console that does not squeeze tables where no one looks on: in a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 400, highlight=False)


def _list(arguments: argparse.Namespace) -> None:
    from flaxcnn.inspect import summary

    summary.print_models(_console(), arguments.pattern)


def _summary(arguments: argparse.Namespace) -> None:
    from flaxcnn.inspect import summary

    summary.print_summary(
        _console(),
        arguments.name,
        dict(arguments.fields),
        image_size=arguments.image_size,
        channels=arguments.channels,
        batch=arguments.batch,
    )


def _prepare(arguments: argparse.Namespace) -> None:
    from flaxcnn.data import prepare, resized, sources

    of_folder = arguments.name.startswith(sources.FOLDER)
    if arguments.source and of_folder:
        raise UserError("--from is for data sets that are downloaded; a folder is read where it lies")
    if arguments.bad_images and not arguments.resize:
        raise UserError("--bad-images goes with --resize")
    if of_folder and not arguments.resize:
        sizes = {split: len(source) for split, source in sources.open_splits(arguments.name).items()}
        print(f"{arguments.name} needs no preparation: {_sizes(sizes)}")
        return
    where = (arguments.name, arguments.data_dir, arguments.source)
    existed, left_out = False, []
    with _ended_by_exception():
        if arguments.resize:
            builder, existed, left_out = resized.prepare_resized(
                *where, side=arguments.resize, bad_images=arguments.bad_images or "stop"
            )
        else:
            builder = prepare.prepare(*where)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    already = " already" if existed else ""
    print(f"{builder.info.full_name} is prepared{already} in {builder.data_path}: {_sizes(sizes)}")
    if left_out:
        print(f"left out, because they cannot be read: {len(left_out):,}")
        for line in left_out[:_NAMED]:
            print(f"  {line}")
        if len(left_out) > _NAMED:
            print(f"  and {len(left_out) - _NAMED:,} more")


@contextlib.contextmanager
def _ended_by_exception():
    """Has SIGTERM end the process as an exception does, by which what is half-written is removed."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sizes(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in splits.items())


def _evaluate(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flaxcnn.training import inference, report

    experiment, state = inference.load_trained(arguments.workdir, arguments.checkpoint, averaged=arguments.averaged)
    config = experiment.config
    config.evaluation.batch_size = arguments.batch_size or config.evaluation.batch_size
    config.data.data_dir = arguments.data_dir or config.data.data_dir
    config.data.bad_images = arguments.bad_images or config.data.bad_images
    split = arguments.split or config.data.test_split
    evaluation = inference.evaluate(experiment, state, split)
    report.print_evaluation(
        Console(), experiment, evaluation, split=split, checkpoint=f"checkpoint of step {int(state.step):,}"
    )


def _predict(arguments: argparse.Namespace) -> None:
    import numpy as np

    from flaxcnn.training import inference

    experiment, state = inference.load_trained(arguments.workdir, arguments.checkpoint, averaged=arguments.averaged)
    images = inference.read_images(experiment, arguments.images)
    batch_size = min(len(images), experiment.config.evaluation.batch_size)
    probabilities = inference.make_predictor(experiment, state, batch_size).probabilities(images)
    for path, shares in zip(arguments.images, probabilities, strict=True):
        print(path)
        for index in np.argsort(-shares, kind="stable")[:5]:
            print(f"  {shares[index]:.4f}  {experiment.class_names[index]}")


def _export(arguments: argparse.Namespace) -> None:
    from flaxcnn.models import list_models

    is_workdir = Path(arguments.source).is_dir()
    is_name = arguments.source in list_models() and not is_workdir
    if not is_name and not is_workdir:
        hint = nearest(arguments.source, list_models())
        raise UserError(f"{arguments.source} holds no run, and no network is called so{hint}")
    if is_name and (arguments.checkpoint != "latest" or arguments.averaged):
        raise UserError("--checkpoint and --averaged are for work directories; networks by name have --weights")
    if not is_name and (arguments.weights or arguments.image_size):
        raise UserError(
            f"--weights and --image-size are for networks by name; a work directory, as {arguments.source} is, has "
            f"its own"
        )
    maps = _export_network(arguments) if is_name else _export_run(arguments)
    print(f"{arguments.file} maps {maps} ({arguments.file.stat().st_size / 1e6:.1f} MB)")


def _export_run(arguments: argparse.Namespace) -> str:
    from flaxcnn.training import inference

    workdir = Path(arguments.source)
    experiment, state = inference.load_trained(workdir, arguments.checkpoint, averaged=arguments.averaged)
    inference.export_trained(experiment, state, arguments.file)
    size = "x".join(map(str, experiment.image_shape))
    return f"uint8 images of {size} to the probabilities of {len(experiment.class_names)} classes"


def _export_network(arguments: argparse.Namespace) -> str:
    import jax
    import jax.numpy as jnp

    from flaxcnn import create_model, export, load_pretrained, model_info

    info = model_info(arguments.source)
    *own_size, channels = info.input_shape
    height, width = arguments.image_size or own_size
    if arguments.weights == "random":
        model = create_model(info.name)
        images = jnp.zeros((1, height or own_size[0], width or own_size[1], channels))
        variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
        names, normalised = None, ""
    elif not (arguments.weights or info.weights):
        raise UserError(
            f"no weights of {info.name} are published; train it and export its work directory, or write "
            f"--weights random"
        )
    else:
        model, variables = load_pretrained(info.name, arguments.weights or "default")
        names = info.class_names if model.num_classes == info.num_classes else None
        normalised = f", normalised by mean {info.mean} and deviation {info.std},"
    export(arguments.file, model, variables, (height, width, channels), class_names=names)
    size = f"{height}x{width}x{channels}" if height else f"any size and {channels} channels"
    return f"float32 images of {size}{normalised} to the logits of {model.num_classes} classes"
