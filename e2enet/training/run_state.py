"""What a checkpoint says of a run beside weights and optimizer: where it stands, the generators, what the run is.

Lightning's checkpoint has weights, optimizer, schedule, callbacks and counters. Its counters stand between two of their
increments wherever a checkpoint is written, and a run that goes on from there repeats or leaves out a batch, a
validation or a row of metrics.csv. They are settled here, so that going on is the same as never having stopped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

KEY = "e2enet"  # of a RunState in a checkpoint


@dataclass(frozen=True)
class RunState:
    """What Lightning's checkpoint leaves out, in plain containers and tensors.

    Attributes:
        step: Optimizer steps so far.
        rows: Rows of metrics.csv so far; later ones will be written again.
        generators: `generator_states`.
        identity: What may not change, by dotted key: see `resume.identity`.
    """

    step: int
    rows: int
    generators: dict[str, Any]
    identity: dict[str, Any]

    def write_to(self, checkpoint: dict[str, Any], *, validating: bool) -> None:
        """Add this to a checkpoint of Lightning's and settle its counters.

        `validating`: between the last batch of an epoch and the end of its validation, which will be begun anew.
        """
        checkpoint[KEY] = asdict(self)
        _settle(checkpoint["loops"]["fit_loop"], validating)

    @staticmethod
    def read_from(checkpoint: Mapping[str, Any]) -> RunState:
        """What `write_to` has added; KeyError or TypeError for a checkpoint that is none of a run."""
        return RunState(**checkpoint[KEY])


def generator_states() -> dict[str, Any]:
    """States of the generators of torch, of this process's GPU, of NumPy and of Python: dropout draws from them.

    Patches and masks need none of them. Of several processes all draw alike, from the same seed.
    """
    numpy = dict(np.random.get_state(legacy=False))
    numpy["state"] = {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}
    version, state, next_normal = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": numpy,
        "python": [version, list(state), next_normal],
    }


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Let the generators go on from where `generator_states` found them."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])
    np.random.set_state(states["numpy"])
    version, state, next_normal = states["python"]
    random.setstate((version, tuple(state), next_normal))


def _settle(loop: dict[str, Any], validating: bool) -> None:
    """Let the counters of the fit loop say that nothing is under way but the epoch.

    With k batches behind it a batch counts k in each of its four stages, which Lightning reads as "go on with batch
    k + 1", without repeating the last one. An epoch without a finished batch is counted as not begun, and begins anew.
    """
    epoch, batch = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    validation = loop["epoch_loop.val_loop.batch_progress"]
    under_way = epoch["current"]["started"] > epoch["current"]["processed"] and batch["current"]["completed"] > 0
    for scope in ("total", "current"):
        _count(batch[scope], batch[scope]["completed"])
        begun = epoch[scope]["processed"] + int(under_way)
        epoch[scope].update(ready=begun, started=begun, completed=epoch[scope]["processed"])
        _count(validation[scope], 0)
    batch["is_last_batch"] = validating
    validation["is_last_batch"] = False
    if validating:
        validation["total"].update(ready=1, started=1)  # one batch begun and none done: to be begun anew


def _count(stages: dict[str, int], number: int) -> None:
    stages.update(ready=number, started=number, processed=number, completed=number)
