"""A config's network and trainer built on trial before any data is prepared: what they refuse is told at once."""

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

# Of a plan that follows from the data, only that its levels are between these many.
LEVELS = range(2, 7)
PATCH = (128, 128, 128)


def network_problem(
    network: Mapping[str, Any], masks: bool, strides: Sequence[Sequence[int]] | None, patch_size: Sequence[int] | None
) -> str | None:
    """Why no network can be built of a `network` section, or why DSFF finds nothing to mask in it; None where it can.

    Args:
        network: the section, checked by its target's signature.
        masks: whether DSFF is to mask it.
        strides: of the plan; None: those follow from the data, and any number of levels will do.
        patch_size: of the plan, or None.
    """
    trust_network(str(network["_target_"]))
    tried = [strides] if strides else [[(2, 2, 2)] * (levels - 1) for levels in LEVELS]
    problem: str | None = None
    # Without memory where the network allows; some look at a value while they are made.
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
    """Why Lightning builds no trainer of a `trainer` section, checked by its signature; None where it does."""
    kept = {
        key: value for key, value in options.items() if key not in ("probe", "deterministic", "profiler", "plugins")
    }
    return _trainer_problem(json.dumps(kept, sort_keys=True, default=str))


@cache  # asked for every job of a sweep
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
    except Exception as error:  # Lightning's own errors are of many kinds
        return f"trainer: Lightning refuses it ({first_line(error)})"
    finally:
        remarks.setLevel(level)
    return None
