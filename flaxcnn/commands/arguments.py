"""The argument parser of the subcommands, types of arguments, and arguments that several subcommands have."""

import argparse
import ast
import contextlib
import json
import re
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from flaxcnn.errors import UserError, nearest
from flaxcnn.paths import local_path


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` with one-line errors and without abbreviations: `--data` does not stand for `--data-dir`."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, allow_abbrev=False, **keywords)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuses unknown arguments already here, so that the error message names the help of the subcommand."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = next((each.partition("=")[0] for each in unknown if each.startswith("-")), "")
            hint = nearest(option, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` with a hint at similar choices, and with the command that prints the help."""
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = nearest(choice[1], re.findall(r"\w+", choice[2])) if choice else ""
        raise UserError(f"{message}{hint} ({self.prog} --help)")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def whole(text: str, minimum: int) -> int:
    """Parses a whole number of `minimum` or more, below a million."""
    if not text.isdecimal() or not minimum <= int(text) < 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more, below a million")
    return int(text)


def positive(text: str) -> int:
    """Parses a whole number of 1 or more, below a million."""
    return whole(text, 1)


def path(text: str) -> Path:
    """Parses the path of a file or folder on this machine."""
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(text: str) -> tuple[int, int]:
    """Parses an image size, such as "224" or "224x160", to (height, width) in pixels."""
    height, *width = text.split("x", 1)
    try:
        return positive(height), positive(*width or [height])
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels, such as 224 or 224x160") from None


def size_or_any(text: str) -> tuple[int | None, int | None]:
    """Parses an image size as `size` does, or "any", which becomes (None, None)."""
    return (None, None) if text == "any" else size(text)


def field(text: str) -> tuple[str, Any]:
    """Parses "FIELD=VALUE" to (name, value).

    The value may be a number, a list ("1,1,1" or "[[1, 64], [2, 128]]"), true, false, none or text.
    """
    name, equals, value = text.partition("=")
    if not equals or name in ("", "name"):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as norm=batch_norm")
    for parse in (ast.literal_eval, json.loads, lambda value: json.loads(f"[{value}]")):
        with contextlib.suppress(ValueError, SyntaxError):
            return name, parse(value)
    return name, None if value == "none" else value


def add_workdir(parser: Parser) -> None:
    """Adds the positional argument WORKDIR, the folder of a run."""
    parser.add_argument(
        "workdir", metavar="WORKDIR", type=path, help="folder of the run, such as runs/digits_lenet5"
    )


def add_checkpoint(parser: Parser) -> None:
    """Adds `--checkpoint` and `--averaged`, which choose a checkpoint and its parameters or their average."""
    parser.add_argument(
        "--checkpoint",
        metavar="STEP",
        default="latest",
        help="checkpoint to use: latest, best (the one with the highest test accuracy) or the number of a step "
        "(default: latest)",
    )
    parser.add_argument(
        "--averaged",
        action="store_true",
        help="use the averaged parameters, which a run keeps if optimizer.ema_decay is set",
    )


def add_output(parser: Parser) -> None:
    """Adds `--output`, the file for predictions, and `--bad-images`: stop at unreadable images, or skip them."""
    parser.add_argument(
        "--output",
        type=path,
        metavar="FILE",
        help="write the predictions to a new file, one line per image, in the format of its ending: .csv or .jsonl",
    )
    parser.add_argument(
        "--bad-images",
        choices=("stop", "skip"),
        help="what to do about an image that cannot be read: stop, or skip and count it (default: as in training)",
    )
