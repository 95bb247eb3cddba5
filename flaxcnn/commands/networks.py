"""The subcommands `list` and `summary`: all networks, and the layers and the cost of one network."""

import argparse
import sys
from typing import Any

from flaxcnn.commands.arguments import Verbs, field, positive, size, whole


def add_to(verbs: Verbs) -> None:
    """Adds the `list` and `summary` subcommands and their arguments to the parser."""
    names = verbs.add_parser(
        "list",
        help="list the networks",
        description="List the networks: input, parameters, multiply-adds and published accuracy.",
    )
    names.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="*",
        help="part of a name, or a shell wildcard such as 'resnet*' (default: all networks)",
    )
    names.set_defaults(run=_list)

    summary = verbs.add_parser(
        "summary",
        help="show each layer of a network and what it costs",
        description="Show the layers of a network in the order in which they compute: output shape, parameters, "
        "multiply-adds and memory.",
    )
    summary.add_argument("name", metavar="NAME", help="name of the network, such as resnet50")
    summary.add_argument(
        "--image-size",
        type=size,
        metavar="SIZE",
        help="image size in pixels, such as 224 or 224x160, height first (default: the size it was designed for)",
    )
    summary.add_argument(
        "--channels",
        type=positive,
        metavar="CHANNELS",
        help="number of image channels (default: the number it was designed for)",
    )
    summary.add_argument(
        "--batch", type=positive, metavar="IMAGES", default=1, help="number of images per batch (default: 1)"
    )
    # Both options append to one list, in which the last value of a field counts.
    summary.add_argument(
        "--num-classes",
        type=_num_classes,
        metavar="CLASSES",
        dest="fields",
        action="append",
        default=[],
        help="number of classes; 0 leaves out the classifier",
    )
    summary.add_argument(
        "--set",
        type=field,
        metavar="FIELD=VALUE",
        dest="fields",
        action="append",
        default=[],
        help="set a field of the network, such as norm=batch_norm, depths=1,1,1 or dtype=bfloat16; may be repeated",
    )
    summary.set_defaults(run=_summary)


def _num_classes(text: str) -> tuple[str, int]:
    return "num_classes", whole(text, 0)


def _console():
    """Returns a console; if the output is a file or a pipe, it does not fit tables to the width of a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 400, highlight=False)


def _list(arguments: argparse.Namespace) -> None:
    from flaxcnn.inspect import summary

    summary.print_models(_console(), arguments.pattern)


def _summary(arguments: argparse.Namespace) -> None:
    from flaxcnn.inspect import summary

    fields: dict[str, Any] = dict(arguments.fields)
    summary.print_summary(
        _console(),
        arguments.name,
        fields,
        image_size=arguments.image_size,
        channels=arguments.channels,
        batch=arguments.batch,
    )
