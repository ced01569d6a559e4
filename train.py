"""Train a network on a dataset: python train.py [overrides], which is `e2enet train` in a checkout."""

import sys

from e2enet.__main__ import run_command

if __name__ == "__main__":
    run_command("train", sys.argv[1:])
