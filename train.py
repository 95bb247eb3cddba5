"""Trains a network: python train.py [--config=configs/FILE.py] [--config.KEY=VALUE ...] [--workdir=FOLDER].

Without a configuration it trains LeNet-5 on handwritten digits, in under a minute. The same command, given again,
continues where it stopped. --help lists every key.
"""

import sys
from pathlib import Path

from flaxcnn import UserError, flags
from flaxcnn.errors import escape_unencodable_output, quiet_on_closed_pipe
from flaxcnn.training import distributed, loop

# A program that Python reads from its standard input has no file; it is in the current folder then.
DEFAULT = Path(globals().get("__file__", "train.py")).parent / "configs" / "digits_lenet5.py"


def main(argv: list[str]) -> int:
    """Runs what the command line asks for; returns the exit code."""
    escape_unencodable_output()
    try:
        with quiet_on_closed_pipe():
            command = flags.parse(argv, DEFAULT)
            distributed.initialize(command.coordinator, command.num_processes, command.process_id)
            loop.fit(command.config, command.workdir)
    except (UserError, OSError) as error:  # OSError: a folder that may not be entered, a full disk
        print(f"error: {error}", file=sys.stderr)
        return distributed.leave(2)
    except KeyboardInterrupt:
        return distributed.leave(130)
    except loop.Interrupted as interrupted:
        if distributed.is_primary():
            print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
