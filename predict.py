"""Segment scans with trained models: python predict.py [overrides], which is `e2enet predict` in a checkout."""

import sys

from e2enet.__main__ import run_command

if __name__ == "__main__":
    run_command("predict", sys.argv[1:])
