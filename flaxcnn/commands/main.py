"""The command `flaxcnn VERB`: runs a subcommand, and prints mistakes of the user in one line."""

import sys
from collections.abc import Sequence

from flaxcnn.commands import evaluate, export, networks, predict, prepare
from flaxcnn.commands.arguments import Parser
from flaxcnn.errors import UserError
from flaxcnn.terminal import escape_unencodable_output, quiet_on_closed_pipe


def main(argv: Sequence[str] | None = None, program: str = "flaxcnn") -> int:
    """Runs a subcommand.

    Args:
      argv: arguments after the program's name; None takes those of this process.
      program: name of the program in usage messages.

    Returns:
      The exit code: 0; 2 after a mistake of the user; 130 after Ctrl-C. For `train` see `commands.train.main`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"]:  # `train` parses its flags with absl
        from flaxcnn.commands import train

        return train.main([f"{program} train", *argv[1:]])
    escape_unencodable_output()
    try:
        with quiet_on_closed_pipe():
            arguments = _parser(program).parse_args(argv)
            arguments.run(arguments)
    except (UserError, OSError) as error:  # OSError: a folder without permission, a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        description="Train convolutional networks, and use the networks that you have trained.",
        epilog=f"{program} VERB --help explains the arguments of a verb.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs", parser_class=Parser)
    verbs.add_parser("train", add_help=False, help="train a network by a recipe, or continue where a run stopped")
    for verb in (evaluate, predict, export, prepare, networks):
        verb.add_to(verbs)
    return parser
