"""The subcommand `predict`: prints the most likely classes of image files."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, cast

from flaxcnn.commands.arguments import Verbs, add_checkpoint, add_output, add_workdir, path, positive
from flaxcnn.commands.bad_images import NAMED, left_out
from flaxcnn.commands.termination import terminated_by_exception
from flaxcnn.errors import UserError
from flaxcnn.terminal import printable

if TYPE_CHECKING:
    from flaxcnn.data.sources.folder import FolderSource


def add_to(verbs: Verbs) -> None:
    """Adds the `predict` subcommand and its arguments to the parser."""
    parser = verbs.add_parser(
        "predict",
        help="classify images with a trained network",
        description="Classify images with a trained network: the most likely classes and their probabilities.",
    )
    add_workdir(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        type=path,
        help="image file, or folder; of a folder, all images in it and in its subfolders are classified",
    )
    parser.add_argument(
        "--top",
        type=positive,
        metavar="CLASSES",
        default=5,
        help="number of classes per image, the most likely first (default: 5)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="IMAGES",
        default=16,
        help="images per batch over all devices (default: 16)",
    )
    add_output(parser)
    add_checkpoint(parser)
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    from flaxcnn.trained import prediction_files
    from flaxcnn.trained.datasets import open_files
    from flaxcnn.trained.prediction import predict
    from flaxcnn.trained.run import load_trained

    if arguments.output:
        prediction_files.check_writable(arguments.output)
    experiment, state = load_trained(arguments.workdir, arguments.checkpoint, averaged=arguments.averaged)
    dataset, names = open_files(experiment, arguments.images), experiment.class_names
    source = cast("FolderSource", dataset.source)  # the only source that knows the paths of its images
    skip = (arguments.bad_images or experiment.config.data.bad_images) == "skip"
    count, bad = 0, []

    def note_bad(index: int, reason: str) -> None:
        if not skip:
            raise UserError(f"{source.describe(index)}: {reason}; --bad-images skip leaves it out")
        if len(bad) < NAMED:
            bad.append(f"{source.describe(index)}: {reason}")

    found = predict(experiment, state, dataset, batch_size=min(len(dataset), arguments.batch_size), on_bad=note_bad)
    with contextlib.ExitStack() as stack:
        write = None
        if arguments.output:
            stack.enter_context(terminated_by_exception())
            write = stack.enter_context(prediction_files.writing(arguments.output, names, arguments.top))
        for prediction in found:
            count += 1
            file, probabilities = source.file(prediction.index), prediction.probabilities
            if write:
                write({"file": file}, probabilities)
                continue
            print(printable(file))
            for index in prediction_files.likeliest(probabilities, arguments.top):
                print(f"  {probabilities[index]:.4f}  {printable(names[index])}")
        if not count:
            more = f", and {len(dataset) - 1:,} more" if len(dataset) > 1 else ""
            raise UserError(f"no image can be read: {bad[0]}{more}")
        for line in left_out(len(dataset) - count, bad):
            print(line, file=sys.stderr)
    if arguments.output:
        print(f"predictions of {count:,} images in {arguments.output}")
