"""Values that several commands read from their command line, as `type` of argparse."""

from __future__ import annotations

import argparse


def label_of(text: str) -> int:
    """Read a label, such as "3"."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 expected")
    return int(text)


def renumbering_of(text: str) -> tuple[int, int]:
    """Read a value in files and its label, such as "4=3"."""
    value, _, label = text.partition("=")
    return label_of(value), label_of(label)
