"""Parts of a training step built from a config: the loss and the learning-rate schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_method, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from e2enet.common.configs import as_plain

STEP_PARTS = ("loss", "optimizer", "schedule")  # sections of a config that checkpoints keep in `training`


def training_settings(config: DictConfig) -> dict[str, Any]:
    """Return what a checkpoint keeps: the section `training` with the sections of loss, optimizer and schedule."""
    return {**as_plain(config.training), **{part: as_plain(config[part]) for part in STEP_PARTS}}


class ChannelTargets(nn.Module):
    """Adapter: takes a target (B, D, H, W) for a loss that expects a channel axis, (B, 1, D, H, W)."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K, D, H, W)."""
        result: Tensor = self.loss(logits, target[:, None])
        return result


def taking_labels(loss: Any) -> Any:
    """Return a loss(logits, target) for labels (B, D, H, W); MONAI's losses get the channel axis that they expect."""
    if any(kind.__module__.startswith("monai.losses") for kind in type(loss).__mro__):
        return ChannelTargets(loss)
    return loss


def build_schedule(config: Mapping[str, Any], optimizer: Optimizer, total: Callable[[str], int]) -> tuple[Any, str]:
    """Build the scheduler of a `schedule` section; return it and its interval, "step" or "epoch".

    Args:
        config: the section.
        optimizer: whose learning rate it sets.
        total: interval -> length of the run in it; called only if the schedule has a parameter `total`.
    """
    options = dict(config)
    interval = options.pop("interval", "epoch")
    options.pop("monitor", None)
    supplied: dict[str, Any] = {"optimizer": optimizer}
    if "total" in inspect.signature(get_method(options["_target_"])).parameters:
        supplied["total"] = total(interval)
    return instantiate(options, **supplied), interval
