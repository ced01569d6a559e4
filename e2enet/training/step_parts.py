"""What a training step is made of, built from a config: its loss, and the schedule of its learning rate."""

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
    """What a checkpoint keeps of a config's training: the section `training`, with those of the step's parts in it."""
    return {**as_plain(config.training), **{part: as_plain(config[part]) for part in STEP_PARTS}}


class ChannelTargets(nn.Module):
    """A loss that wants its target with an axis of channels, (B, 1, D, H, W), given one without, (B, D, H, W)."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (B, K, D, H, W)."""
        result: Tensor = self.loss(logits, target[:, None])
        return result


def taking_labels(loss: Any) -> Any:
    """A loss(logits, target) of labels (B, D, H, W): itself, or MONAI's with the axis of channels that these want."""
    if any(kind.__module__.startswith("monai.losses") for kind in type(loss).__mro__):
        return ChannelTargets(loss)
    return loss


def build_schedule(config: Mapping[str, Any], optimizer: Optimizer, total: Callable[[str], int]) -> tuple[Any, str]:
    """The scheduler of a `schedule` section, and its interval: "step" or "epoch".

    Args:
        config: the section.
        optimizer: whose learning rate it sets.
        total: the length of the run in such intervals, asked for where the schedule takes it.
    """
    options = dict(config)
    interval = options.pop("interval", "epoch")
    options.pop("monitor", None)
    supplied: dict[str, Any] = {"optimizer": optimizer}
    if "total" in inspect.signature(get_method(options["_target_"])).parameters:
        supplied["total"] = total(interval)
    return instantiate(options, **supplied), interval
