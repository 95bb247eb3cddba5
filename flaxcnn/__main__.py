"""`python -m flaxcnn`."""

import sys

from flaxcnn.cli import main

sys.exit(main())
