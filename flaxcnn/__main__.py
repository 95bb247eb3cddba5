"""`python -m flaxcnn`."""

import sys

from flaxcnn import launch
from flaxcnn.cli import main

launch.prepare_process()
sys.exit(main())
