"""Which weights a model has: the digest of the files that it was read from, though a training may replace them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from e2enet.common.errors import InputError
from e2enet.inference.finished import file_digest
from e2enet.inference.nnunet_model import DATASET, ENDING, PLANS

MAX_LOADS = 3  # a training replaces its checkpoints once in an epoch at most
Loaded = TypeVar("Loaded")


def load_unchanged(path: Path, load: Callable[[str], Loaded]) -> Loaded:
    """Return `load(digest)`, which reads a checkpoint that has this `checkpoint_digest` before and after it.

    Raises:
        InputError: the file was replaced each time while it was read, or a file cannot be read.
    """
    for _ in range(MAX_LOADS):
        digest = checkpoint_digest(path)
        loaded = load(digest)
        if checkpoint_digest(path) == digest:
            return loaded
    raise InputError(
        f"{path}: was replaced while it was read, {MAX_LOADS} times; a file expected that no training replaces"
    )


def checkpoint_digest(path: Path) -> str:
    """Return the `file_digest` of a checkpoint; for one of nnU-Net, also those of plans.json and dataset.json.

    nnU-Net's checkpoint holds no more than weights: spacing, patch, normalisation and labels are in these two files.
    """
    files = [path]
    if path.suffix == ENDING:
        folder = path.absolute().parent.parent
        files += [file for file in (folder / PLANS, folder / DATASET) if file.is_file()]
    return " ".join(map(file_digest, files))
