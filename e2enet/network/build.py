"""Networks by name, from the plain settings that a config or a checkpoint holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from e2enet.common.errors import InputError
from e2enet.network.e2enet import E2ENet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"e2enet": E2ENet}


def build_network(
    config: Mapping[str, Any], *, in_channels: int, num_classes: int, strides: Sequence[Sequence[int]]
) -> nn.Module:
    """Build the network `config["name"]` with the other keys of `config` as its settings.

    Names are looked up in a fixed table, so a checkpoint cannot make this call anything else.

    Raises:
        InputError: for an unknown name, unknown settings, or values that the network refuses.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in NETWORKS:
        raise InputError(f"network.name is {name!r}; expected one of {sorted(NETWORKS)}")
    maker = NETWORKS[name]
    allowed = inspect.signature(maker).parameters.keys() - {"in_channels", "num_classes", "strides"}
    unknown = sorted(settings.keys() - allowed)
    if unknown:
        raise InputError(f"network {name} has no settings {unknown}; it has {sorted(allowed)}")
    try:
        return maker(in_channels, num_classes, strides, **settings)
    except ValueError as error:
        raise InputError(f"network {name}: {error}") from error
