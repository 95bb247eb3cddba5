"""The verbs of `python -m flaxcnn`: list, summary, prepare, evaluate, predict, export."""

import argparse
import ast
import contextlib
import functools
import json
import re
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from flaxcnn.errors import UserError, escape_unencodable_output, nearest, printable, quiet_on_closed_pipe
from flaxcnn.paths import local_path

# Images that cannot be read are named up to this number, and counted beyond.
_NAMED = 20


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, and options are not abbreviated: `--data` is not `--data-dir`."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, allow_abbrev=False, **keywords)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuses what this parser does not know, so that a verb says it, and not the parser of all verbs."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = next((each.partition("=")[0] for each in unknown if each.startswith("-")), "")
            hint = nearest(option, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = nearest(choice[1], re.findall(r"\w+", choice[2])) if choice else ""
        raise UserError(f"{message}{hint} ({self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, or 2 after a mistake of the user's."""
    escape_unencodable_output()
    try:
        with quiet_on_closed_pipe():
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
        type=_path,
        metavar="DIR",
        help="folder that already holds the files to download",
    )
    prepare.add_argument(
        "--data-dir", type=_path, metavar="DIR", help="where prepared sets go (default: TFDS's own folder)"
    )
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
    evaluate.add_argument("workdir", metavar="WORKDIR", type=_path)
    evaluate.add_argument(
        "--data", metavar="DATA", help="another data set with the same classes: folder:PATH or a TFDS name"
    )
    evaluate.add_argument("--split", help="of the data set (default: the run's test split)")
    evaluate.add_argument("--batch-size", type=_positive, help="images at a time; changes no accuracy")
    evaluate.add_argument(
        "--data-dir", type=_path, metavar="DIR", help="where prepared sets lie (default: as in training)"
    )
    evaluate.set_defaults(run=_evaluate)

    predict = verbs.add_parser("predict", help="classify images with what a work directory holds")
    predict.add_argument("workdir", metavar="WORKDIR", type=_path)
    predict.add_argument(
        "images", metavar="IMAGE", nargs="+", type=_path, help="a file, or a folder with all below it"
    )
    predict.add_argument(
        "--top", type=_positive, metavar="CLASSES", default=5, help="so many of the likeliest classes (default: 5)"
    )
    predict.add_argument("--batch-size", type=_positive, default=16, help="images at a time (default: 16)")
    predict.set_defaults(run=_predict)

    for verb in (evaluate, predict):
        verb.add_argument(
            "--output", type=_path, metavar="FILE", help="write a line an image to FILE.csv or FILE.jsonl"
        )
        verb.add_argument(
            "--bad-images",
            choices=("stop", "skip"),
            help="what becomes of images that cannot be read (default: as in training)",
        )

    export = verbs.add_parser("export", help="write a network as a program that needs only JAX, or as ONNX")
    export.add_argument("source", metavar="NAME|WORKDIR", help="a network, such as resnet50, or a work directory")
    export.add_argument(
        "file",
        metavar="FILE",
        type=_path,
        help="to write, as ONNX if it ends in .onnx; FILE.json says what it takes",
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


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or not least <= int(text) < 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more, below a million")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _path(text: str) -> Path:
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> tuple[int, int]:
    """Returns height and width of "224" or "224x160"."""
    height, *width = text.split("x", 1)
    try:
        return _positive(height), _positive(*width or [height])
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels, such as 224 or 224x160") from None


def _size_or_any(text: str) -> tuple[int | None, int | None]:
    return (None, None) if text == "any" else _size(text)


def _num_classes(text: str) -> tuple[str, int]:
    return "num_classes", _whole(text, 0)


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
        sources.refuse_data_dir(arguments.name, arguments.data_dir, "--data-dir")
        splits = sources.open_splits(arguments.name)
        _print_notes(next(iter(splits.values())).notes)
        sizes = {split: len(source) for split, source in splits.items()}
        print(f"{printable(arguments.name)} needs no preparation: {printable(_sizes(sizes))}")
        return
    data_dir = str(arguments.data_dir) if arguments.data_dir else None
    where = (arguments.name, data_dir, arguments.source)
    existed, left_out, notes = False, [], ()
    with _ended_by_exception():
        if arguments.resize:
            builder, existed, left_out, notes = resized.prepare_resized(
                *where, side=arguments.resize, bad_images=arguments.bad_images or "stop"
            )
        else:
            builder = prepare.prepare(*where)
    _print_notes(notes)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    already = " already" if existed else ""
    print(f"{builder.info.full_name} is prepared{already} in {builder.data_path}: {_sizes(sizes)}")
    for line in _left_out(len(left_out), left_out[:_NAMED]):
        print(line)


def _left_out(count: int, named: Sequence[str]) -> Iterable[str]:
    """Yields lines on the images that cannot be read, of which some are named; none if there are none."""
    if count:
        yield f"left out, because they cannot be read: {count:,}"
        yield from (f"  {line}" for line in named)
        if count > len(named):
            yield f"  and {count - len(named):,} more"


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(note)


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

    from flaxcnn.data import sources
    from flaxcnn.training import inference, predictions, report

    if arguments.output:
        predictions.check_writable(arguments.output)
    experiment, state = inference.load_trained(arguments.workdir, arguments.checkpoint, averaged=arguments.averaged)
    config = experiment.config
    sources.refuse_data_dir(arguments.data or config.data.name, arguments.data_dir, "--data-dir")
    config.evaluation.batch_size = arguments.batch_size or config.evaluation.batch_size
    config.data.data_dir = str(arguments.data_dir) if arguments.data_dir else config.data.data_dir
    config.data.bad_images = arguments.bad_images or config.data.bad_images
    if arguments.data:
        delivery = inference.open_other_data(experiment, arguments.data, arguments.split, workdir=arguments.workdir)
        split = delivery.source.split
        whole = " (the folder has no splits)" if split == "all" and not arguments.split else ""
        print(f"{arguments.data}: split {split}{whole}, {len(delivery.source):,} images")
    else:
        delivery = inference.open_data(experiment, arguments.split)
        split = delivery.source.split
    evaluation = inference.evaluate(experiment, state, delivery)
    report.print_evaluation(
        Console(), experiment, evaluation, split=split, checkpoint=f"checkpoint of step {int(state.step):,}"
    )
    if not arguments.output:
        return
    source, names = delivery.source, experiment.class_names
    of_files = source.name.startswith(sources.FOLDER)
    found = inference.predict(
        experiment,
        state,
        delivery,
        batch_size=min(len(source), config.evaluation.batch_size),
        on_bad=lambda index, reason: None,  # the evaluation has named it
    )
    with _ended_by_exception(), predictions.writing(arguments.output, names, top=5) as write:
        for prediction in found:
            file = {"file": source.file(prediction.index)} if of_files else {}
            image = {"index": prediction.index, **file, "label": names[prediction.label]}
            write(image, prediction.probabilities)
    print(f"predictions of {evaluation.count:,} images in {arguments.output}")


def _predict(arguments: argparse.Namespace) -> None:
    from flaxcnn.training import inference, predictions

    if arguments.output:
        predictions.check_writable(arguments.output)
    experiment, state = inference.load_trained(arguments.workdir, arguments.checkpoint, averaged=arguments.averaged)
    delivery, names = inference.open_files(experiment, arguments.images), experiment.class_names
    source, skip = delivery.source, (arguments.bad_images or experiment.config.data.bad_images) == "skip"
    count, bad = 0, []

    def note_bad(index: int, reason: str) -> None:
        if not skip:
            raise UserError(f"{source.describe(index)}: {reason}; --bad-images skip leaves it out")
        if len(bad) < _NAMED:
            bad.append(f"{source.describe(index)}: {reason}")

    found = inference.predict(
        experiment, state, delivery, batch_size=min(len(source), arguments.batch_size), on_bad=note_bad
    )
    with contextlib.ExitStack() as stack:
        if arguments.output:
            stack.enter_context(_ended_by_exception())
            write = stack.enter_context(predictions.writing(arguments.output, names, arguments.top))
        for prediction in found:
            count += 1
            file, probabilities = source.file(prediction.index), prediction.probabilities
            if arguments.output:
                write({"file": file}, probabilities)
                continue
            print(printable(file))
            for index in predictions.likeliest(probabilities, arguments.top):
                print(f"  {probabilities[index]:.4f}  {printable(names[index])}")
        if not count:
            more = f", and {len(source) - 1:,} more" if len(source) > 1 else ""
            raise UserError(f"no image can be read: {bad[0]}{more}")
        for line in _left_out(len(source) - count, bad):
            print(line, file=sys.stderr)
    if arguments.output:
        print(f"predictions of {count:,} images in {arguments.output}")


def _export(arguments: argparse.Namespace) -> None:
    from flaxcnn.models import list_models

    workdir = local_path(arguments.source)
    is_workdir = workdir.is_dir()
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
    maps = _export_network(arguments) if is_name else _export_run(arguments, workdir)
    print(f"{arguments.file} maps {maps} ({arguments.file.stat().st_size / 1e6:.1f} MB)")


def _export_run(arguments: argparse.Namespace, workdir: Path) -> str:
    from flaxcnn.training import inference

    experiment, state = inference.load_trained(workdir, arguments.checkpoint, averaged=arguments.averaged)
    inference.export_trained(experiment, state, arguments.file)
    size = "x".join(map(str, experiment.image_shape))
    return f"uint8 images of {size} to the probabilities of {len(experiment.class_names)} classes"


def _export_network(arguments: argparse.Namespace) -> str:
    import jax
    import jax.numpy as jnp

    from flaxcnn import create_model, export, load_pretrained, model_info
    from flaxcnn.inference import describe_preprocessing
    from flaxcnn.models.published import default_weights

    info = model_info(arguments.source)
    *own_size, channels = info.input_shape
    tags = {weights.tag: weights for weights in info.weights}
    tags |= {None: default_weights(info.name)} if tags else {}
    weights = tags.get(arguments.weights)
    if weights:
        own_size = weights.crop, weights.crop
    height, width = arguments.image_size or own_size
    preprocessing = None
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
        normalised = f", normalised by mean {info.mean} and standard deviation {info.std},"
        if weights and not arguments.image_size:
            preprocessing = describe_preprocessing(
                (height, width, channels),
                "float32",
                shorter_side=weights.resize,
                interpolation=weights.interpolation,
                mean=info.mean,
                std=info.std,
            )
    shape = (height, width, channels)
    export(arguments.file, model, variables, shape, class_names=names, preprocessing=preprocessing)
    size = f"{height}x{width}x{channels}" if height else f"any size and {channels} channels"
    return f"float32 images of {size}{normalised} to the logits of {model.num_classes} classes"
