"""Trial builds of a config's network and trainer before any data is prepared, so that their errors come early."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from lightning.pytorch import Trainer

from e2enet.common.errors import InputError, first_line
from e2enet.common.signatures import build_nested
from e2enet.network.build import build_network, trust_network
from e2enet.network.dsff import fusion_layers

# Numbers of levels to try if the plan follows from the data.
LEVELS = range(2, 7)
PATCH = (128, 128, 128)


def network_problem(
    network: Mapping[str, Any], masks: bool, strides: Sequence[Sequence[int]] | None, patch_size: Sequence[int] | None
) -> str | None:
    """Return why the `network` section cannot be built, or has nothing for DSFF to mask; None without a problem.

    Args:
        network: the section, checked by its target's signature.
        masks: whether DSFF is enabled.
        strides: of the plan; None if they follow from the data. Then one number of levels that works is enough.
        patch_size: of the plan, or None.
    """
    trust_network(str(network["_target_"]))
    tried = [strides] if strides else [[(2, 2, 2)] * (levels - 1) for levels in LEVELS]
    problem: str | None = None
    # On the meta device if possible, without memory; some constructors read tensor values and need the CPU.
    for device in ("meta", "cpu"):
        for own in tried:
            try:
                with torch.device(device), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                    warnings.simplefilter("ignore")
                    built = build_network(
                        network, in_channels=1, num_classes=2, strides=own, patch_size=patch_size or PATCH
                    )
            except InputError as error:
                problem = problem or str(error)
                continue
            if masks and not fusion_layers(built):
                return f"dsff.enabled=true: {network['_target_']} has no fusion layers to mask; use dsff=dense"
            return None
    return problem


def trainer_problem(options: Mapping[str, Any]) -> str | None:
    """Return why Lightning cannot build a trainer of a `trainer` section, checked by its signature; None if it can."""
    kept = {
        key: value for key, value in options.items() if key not in ("probe", "deterministic", "profiler", "plugins")
    }
    return _trainer_problem(json.dumps(kept, sort_keys=True, default=str))


@cache  # called for every job of a sweep
def _trainer_problem(options: str) -> str | None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    content = {**json.loads(options), **quiet, "enable_model_summary": False, "barebones": False}
    remarks = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = remarks.level
    try:
        remarks.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trainer(**{key: build_nested(value) for key, value in content.items()})
    except Exception as error:  # Lightning raises many kinds of errors
        return f"trainer: Lightning refuses it ({first_line(error)})"
    finally:
        remarks.setLevel(level)
    return None
