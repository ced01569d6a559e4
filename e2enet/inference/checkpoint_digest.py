"""Which weights a model has: the digest of the file that it was read from, though a training may replace it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from e2enet.common.errors import InputError
from e2enet.inference.finished import file_digest

MAX_LOADS = 3  # a training replaces its checkpoints once in an epoch at most
Loaded = TypeVar("Loaded")


def load_unchanged(path: Path, load: Callable[[str], Loaded]) -> Loaded:
    """Return `load(digest)`, which reads a checkpoint that has this `file_digest` before and after it.

    Raises:
        InputError: the file was replaced each time while it was read, or a file cannot be read.
    """
    for _ in range(MAX_LOADS):
        digest = file_digest(path)
        loaded = load(digest)
        if file_digest(path) == digest:
            return loaded
    raise InputError(
        f"{path}: was replaced while it was read, {MAX_LOADS} times; a file expected that no training replaces"
    )
