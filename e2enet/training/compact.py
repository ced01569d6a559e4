"""compact.ckpt: a checkpoint to predict with, of the weights alone."""

from __future__ import annotations

from pathlib import Path

from e2enet.inference.checkpoint import NETWORK_PREFIX, read_checkpoint
from e2enet.network.packed import pack_kernels
from e2enet.training.checkpoints import AtomicCheckpointIO

COMPACT = "compact.ckpt"


def write_compact(checkpoint: Path, path: Path | None = None) -> Path:
    """Write compact.ckpt: only what prediction needs, with only active kernels in fusion layers.

    By default it lies beside the checkpoint. It has neither optimizer nor counters, so no run can resume from it.
    Return its path.

    Raises:
        InputError: the checkpoint cannot be read, or the disk is full.
    """
    content = read_checkpoint(checkpoint, mmap=True)
    weights = {name: value for name, value in content["state_dict"].items() if name.startswith(NETWORK_PREFIX)}
    compact = {"hyper_parameters": content["hyper_parameters"], "state_dict": pack_kernels(weights)}
    path = path or checkpoint.with_name(COMPACT)
    AtomicCheckpointIO().save_checkpoint(compact, path)
    return path
