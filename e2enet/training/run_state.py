"""The state of a run in a checkpoint beside weights and optimizer: progress, random generators, identity.

Lightning's checkpoint has weights, optimizer, schedule, callbacks and counters. Wherever it is written, some counters
are already incremented and others not yet. A run resumed from it would repeat or skip a batch, a validation or a row
of metrics.csv. The counters are corrected here, so that a resumed run equals one that was never stopped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

KEY = "e2enet"  # of the RunState in a checkpoint


@dataclass(frozen=True)
class RunState:
    """The state that Lightning's checkpoint lacks, in plain containers and tensors.

    Attributes:
        step: Optimizer steps so far.
        rows: Rows of metrics.csv so far; a resumed run writes the later ones again.
        generators: From `generator_states`.
        identity: Dotted key -> value that may not change: see `resume.run_identity`.
    """

    step: int
    rows: int
    generators: dict[str, Any]
    identity: dict[str, Any]

    def write_to(self, checkpoint: dict[str, Any], *, validating: bool) -> None:
        """Add this state to a Lightning checkpoint and correct its counters.

        `validating` is true between the last batch of an epoch and the end of its validation. A resumed run starts
        this validation again.
        """
        checkpoint[KEY] = asdict(self)
        _settle(checkpoint["loops"]["fit_loop"], validating)

    @staticmethod
    def read_from(checkpoint: Mapping[str, Any]) -> RunState:
        """Read what `write_to` added; KeyError or TypeError if the checkpoint has no such state."""
        return RunState(**checkpoint[KEY])


def generator_states() -> dict[str, Any]:
    """Return the states of the random generators of torch, this process's GPU, NumPy and Python.

    Dropout draws from them; patches and masks do not. All processes draw alike, from the same seed.
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
    """Restore the states that `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])
    np.random.set_state(states["numpy"])
    version, state, next_normal = states["python"]
    random.setstate((version, tuple(state), next_normal))


def _settle(loop: dict[str, Any], validating: bool) -> None:
    """Set the fit loop's counters so that only the epoch is in progress.

    After k batches, all four stages of the batch counter are k. Lightning then resumes with batch k + 1 and does not
    repeat the last one. An epoch without a finished batch counts as not started and starts again.
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
        validation["total"].update(ready=1, started=1)  # one batch started, none finished: validation starts again


def _count(stages: dict[str, int], number: int) -> None:
    stages.update(ready=number, started=number, processed=number, completed=number)
