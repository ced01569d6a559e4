"""compact.ckpt: a checkpoint to predict with, of the weights alone. It says which checkpoint it was packed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2enet.inference.checkpoint import NETWORK_PREFIX, read_checkpoint
from e2enet.network.packed import pack_kernels
from e2enet.training.checkpoints import AtomicCheckpointIO

COMPACT = "compact.ckpt"
PACKED_FROM = "packed_from"  # of the Origin in a compact checkpoint


@dataclass(frozen=True)
class Origin:
    """The checkpoint of a run that weights are from: the name of its file, and the optimizer steps so far."""

    file: str
    step: int

    def __str__(self) -> str:
        return f"{self.file}, step {self.step}"


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
    origin = _origin(content, checkpoint)
    if origin is not None:
        compact[PACKED_FROM] = asdict(origin)
    path = path or checkpoint.with_name(COMPACT)
    AtomicCheckpointIO().save_checkpoint(compact, path)
    return path


def find_origin(checkpoint: Path) -> Origin | None:
    """Return a run's checkpoint as its own origin, and that of a compact one.

    None if the file does not say: compact.ckpt of earlier versions, or a model that nnU-Net trained.
    """
    return _origin(read_checkpoint(checkpoint, mmap=True), checkpoint)


def _origin(content: Mapping[str, Any], checkpoint: Path) -> Origin | None:
    own = {"file": checkpoint.name, "step": content.get("global_step")}
    stored = content.get(PACKED_FROM, own)
    file, step = (stored.get(key) for key in own) if isinstance(stored, Mapping) else (None, None)
    return Origin(file, step) if isinstance(file, str) and isinstance(step, int) else None
