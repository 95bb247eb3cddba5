"""The subcommand `train`, also run by train.py: trains a network as its flags specify."""

import sys

from flaxcnn.commands import train_flags
from flaxcnn.config.recipes import recipe_folder
from flaxcnn.errors import UserError
from flaxcnn.parallel import processes
from flaxcnn.terminal import escape_unencodable_output, quiet_on_closed_pipe
from flaxcnn.training import loop

DEFAULT_RECIPE = "digits_lenet5.py"


def main(argv: list[str]) -> int:
    """Trains a network as a command line specifies.

    Args:
      argv: name of the program in usage messages, such as "flaxcnn train", followed by the arguments.

    Returns:
      The exit code: 0; 2 after a mistake of the user; 130 after Ctrl-C before training begins. If a signal stops
      the training, a checkpoint is saved, and the exit code is that of the signal.
    """
    escape_unencodable_output()
    try:
        with quiet_on_closed_pipe():
            command = train_flags.parse(argv, recipe_folder() / DEFAULT_RECIPE)
            processes.initialize(command.coordinator, command.num_processes, command.process_id)
            loop.fit(command.config, command.workdir)
    except (UserError, OSError) as error:  # OSError: a folder without permission, a full disk
        print(f"error: {error}", file=sys.stderr)
        return processes.leave(2)
    except KeyboardInterrupt:
        return processes.leave(130)
    except loop.Interrupted as interrupted:
        if processes.is_primary():
            print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    return 0
