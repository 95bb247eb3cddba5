"""The subcommand `prepare`: downloads a TFDS dataset, or writes a copy of a dataset with smaller images."""

import argparse
from collections.abc import Mapping

from flaxcnn.commands.arguments import Verbs, path, positive
from flaxcnn.commands.bad_images import NAMED, left_out
from flaxcnn.commands.termination import terminated_by_exception
from flaxcnn.errors import UserError
from flaxcnn.terminal import printable


def add_to(verbs: Verbs) -> None:
    """Adds the `prepare` subcommand and its arguments to the parser."""
    parser = verbs.add_parser(
        "prepare",
        help="download a dataset, or write a copy of one with smaller images",
        description="Download a TFDS dataset and prepare it for training. With --resize, write a copy of a dataset "
        "with smaller images, which are faster to read. A folder of images needs no preparation; "
        "it is only looked through.",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="TFDS name, such as fashion_mnist, cifar10 or emnist/letters, or folder:PATH for a folder of images",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=path,
        metavar="DIR",
        help="folder with files that you have downloaded yourself, which are then not downloaded again",
    )
    parser.add_argument(
        "--data-dir",
        type=path,
        metavar="DIR",
        help="folder for prepared datasets (default: that of TFDS)",
    )
    parser.add_argument(
        "--resize",
        type=positive,
        metavar="PIXELS",
        help="write a dataset NAME_PIXELS of the same images, whose shorter side is scaled down to PIXELS pixels",
    )
    parser.add_argument(
        "--bad-images",
        choices=("stop", "skip"),
        help="with --resize: what to do about an image that cannot be read: stop, or leave it out and name it "
        "(default: stop)",
    )
    parser.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> None:
    from flaxcnn.data.resizing import resized
    from flaxcnn.data.sources import folder
    from flaxcnn.data.tfds import preparation

    is_folder = arguments.name.startswith(folder.FOLDER)
    if arguments.source and is_folder:
        raise UserError("--from is for datasets that are downloaded; a folder is read where it lies")
    if arguments.bad_images and not arguments.resize:
        raise UserError("--bad-images goes with --resize")
    if is_folder and not arguments.resize:
        _look_through(arguments)
        return
    data_dir = str(arguments.data_dir) if arguments.data_dir else None
    where = (arguments.name, data_dir, arguments.source)
    existed, bad, notes = False, [], ()
    with terminated_by_exception():
        if arguments.resize:
            builder, existed, bad, notes = resized.prepare_resized(
                *where, side=arguments.resize, bad_images=arguments.bad_images or "stop"
            )
        else:
            builder = preparation.prepare(*where)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    already = " already" if existed else ""
    prepared = f"{builder.info.full_name} is prepared{already} in {builder.data_path}: {_sizes(sizes)}"
    for line in (*notes, prepared, *left_out(len(bad), bad[:NAMED])):
        print(line)


def _look_through(arguments: argparse.Namespace) -> None:
    """Prints the splits of a folder of images, their sizes, and notes about the folder."""
    from flaxcnn.data.sources import opening

    opening.refuse_data_dir(arguments.name, arguments.data_dir, "--data-dir")
    splits = opening.open_splits(arguments.name)
    for note in next(iter(splits.values())).notes:
        print(note)
    sizes = {split: len(source) for split, source in splits.items()}
    print(f"{printable(arguments.name)} needs no preparation: {printable(_sizes(sizes))}")


def _sizes(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in splits.items())
