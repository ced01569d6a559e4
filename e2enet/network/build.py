"""Networks by name, from the plain settings that a config or a checkpoint holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from e2enet.common.errors import InputError
from e2enet.network.baselines import DynUNet, PlainUNet, SwinUNETR
from e2enet.network.e2enet import E2ENet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "e2enet": E2ENet,
    "plain_unet": PlainUNet,
    "dynunet": DynUNet,
    "swin_unetr": SwinUNETR,
}
# Parameters that the data and its plan give, not the settings.
SUPPLIED = ("in_channels", "num_classes", "strides")
# Settings in channels, which the setting `width` multiplies.
CHANNELS = ("base_features", "max_features")


def build_network(
    config: Mapping[str, Any], *, in_channels: int, num_classes: int, strides: Sequence[Sequence[int]]
) -> nn.Module:
    """Build the network `config["name"]` with the other keys of `config` as its settings.

    The setting `width` is a factor that every network has: it multiplies `base_features` and `max_features`, each
    rounded to a whole number and at least 1. Names are looked up in a fixed table, so a checkpoint cannot make this
    call anything else.

    Raises:
        InputError: for an unknown name, unknown settings, or values that the network refuses.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in NETWORKS:
        raise InputError(f"network.name is {name!r}; expected one of {sorted(NETWORKS)}")
    maker = NETWORKS[name]
    parameters = inspect.signature(maker).parameters
    width = settings.pop("width", 1)
    for key in CHANNELS:
        if key in parameters and width != 1:
            settings[key] = max(1, round(width * settings.get(key, parameters[key].default)))
    allowed = parameters.keys() - set(SUPPLIED)
    unknown = sorted(settings.keys() - allowed)
    if unknown:
        raise InputError(f"network {name} has no settings {unknown}; it has {sorted({*allowed, 'width'})}")
    try:
        return maker(in_channels, num_classes, strides, **settings)
    except ValueError as error:
        raise InputError(f"network {name}: {error}") from error


def head_weights(
    config: Mapping[str, Any], *, in_channels: int, num_classes: int, strides: Sequence[Sequence[int]]
) -> set[str]:
    """Names of the weights whose shape follows from the number of classes: those of the heads."""
    # Not on the meta device, on which MONAI's SwinUNETR cannot be built.
    with torch.random.fork_rng(devices=[]):
        one, other = (
            build_network(config, in_channels=in_channels, num_classes=count, strides=strides).state_dict()
            for count in (num_classes, num_classes + 1)
        )
    return {name for name, value in one.items() if value.shape != other[name].shape}
