"""Count what a row of an experiment costs at the paper's scale, without data (see network.cost)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError, first_line
from e2enet.common.overrides import force_added
from e2enet.network.baselines import missing_package
from e2enet.network.build import build_network, trust_network
from e2enet.network.cost import count_cost
from e2enet.network.dsff import init_masks, set_group_size
from e2enet.network.granularity import chosen_group_size

# The widths in the network files apply with the paper's recipe; the other recipes set smaller ones.
PAPER_SCALE = ("training=paper", "plan=paper")


def count_row(overrides: Sequence[str], setting: Mapping[str, Any]) -> dict[str, float]:
    """Count parameters and FLOPs of the network that a row trains with the paper's recipe.

    Args:
        overrides: The row's, as in its experiment; those of data and training have no effect here.
        setting: `in_channels`, `num_classes`, `patch_size` and `strides` (`runs.ablations.row_setting`).

    Returns:
        `params` in millions, `gflops_paper` and `gflops_exact`, by the two conventions; {} if the network's package
        is not installed, or if training decides how many kernels a layer has.

    Raises:
        InputError: the overrides cannot be composed, or the setting is incomplete or does not fit the network.
    """
    return dict(_count(tuple(overrides), json.dumps(setting, sort_keys=True)))


@lru_cache(maxsize=256)
def _count(overrides: tuple[str, ...], setting_json: str) -> dict[str, float]:
    setting = json.loads(setting_json)
    try:
        config = compose_config([*PAPER_SCALE, *force_added(overrides)])
        network_config, masks = as_plain(config.network), as_plain(config.dsff)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"row of {list(overrides)}: {first_line(error)}") from error
    if missing_package(str(network_config["_target_"])) or _moves_between_layers(masks):
        return {}
    missing = sorted({"in_channels", "num_classes", "patch_size", "strides"} - setting.keys())
    if missing:
        raise InputError(f"row of {list(overrides)}: its setting lacks {', '.join(missing)}")
    trust_network(str(network_config["_target_"]))
    with torch.random.fork_rng():  # counting must not change the caller's random state
        network = build_network(
            network_config,
            in_channels=setting["in_channels"],
            num_classes=setting["num_classes"],
            strides=setting["strides"],
            patch_size=setting["patch_size"],
        )
        if masks["enabled"]:
            set_group_size(network, chosen_group_size(masks["granularity"], masks["group_size"]))
            # Which kernels are active is random; how many is not.
            init_masks(network, masks["density"], start=masks["start"], density_by_dim0=masks["density_by_dim0"])
    try:
        paper, exact = (count_cost(network, setting["patch_size"], convention) for convention in ("paper", "exact"))
    except ValueError as error:
        raise InputError(f"row of {list(overrides)}: {error}") from error
    return {"params": exact.params / 1e6, "gflops_paper": paper.flops / 1e9, "gflops_exact": exact.flops / 1e9}


def _moves_between_layers(masks: Mapping[str, Any]) -> bool:
    """Return whether kernels of all layers compete, so that costs are known only after training."""
    return bool(masks["enabled"] and masks["updates"] and masks["prune_over"] == "network")
