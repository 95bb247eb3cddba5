"""Entry point of `python -m flaxcnn`, the same program as the command `flaxcnn`."""

import sys

from flaxcnn.commands.main import main

sys.exit(main(program="python -m flaxcnn"))
