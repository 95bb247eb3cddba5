"""Trains a network: python train.py [--config=RECIPE] [--config.KEY=VALUE ...] [--workdir=FOLDER].

Without a recipe it trains LeNet-5 on handwritten digits, in under a minute. The same command, given again,
continues where it stopped. --help lists the recipes and every key. `flaxcnn train` is the same program.
"""

import sys

from flaxcnn.commands import train

if __name__ == "__main__":
    sys.exit(train.main([f"python {sys.argv[0]}", *sys.argv[1:]]))
