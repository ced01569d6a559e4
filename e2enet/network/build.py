"""Networks from the plain settings that a config or a checkpoint holds."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from e2enet.common.errors import InputError, first_line

# What the data and its plan say of a network, by the names under which networks ask for it.
SUPPLIED = frozenset({"in_channels", "num_classes", "out_channels", "spatial_dims"})
# The same, where the settings say nothing else: some networks mean something of their own by these.
OFFERED = frozenset({"strides", "patch_size", "img_size"})
# Settings in channels, which the setting `width` multiplies.
CHANNELS = ("base_features", "max_features")
# The `name` that stood in the place of a `_target_` in checkpoints of earlier versions.
NAMES = {
    "e2enet": "e2enet.network.e2enet.E2ENet",
    "plain_unet": "e2enet.network.baselines.PlainUNet",
    "dynunet": "e2enet.network.baselines.DynUNet",
    "swin_unetr": "e2enet.network.baselines.SwinUNETR",
}


_trusted = {*NAMES.values(), "e2enet.network.E2ENet"}


def trust_network(target: str) -> None:
    """Let networks of this class be built in this process: a config names it, which is code, or the user does.

    A checkpoint, which may be anybody's, names its network too. Importing it, and calling it with what the checkpoint
    says, could run anything, so that the project's own networks alone are built unasked.
    """
    _trusted.add(target)


def build_network(
    config: Mapping[str, Any],
    *,
    in_channels: int,
    num_classes: int,
    strides: Sequence[Sequence[int]],
    patch_size: Sequence[int] | None = None,
) -> nn.Module:
    """Build the network `config["_target_"]` with the other keys of `config` as its settings.

    What the data and its plan know is given where the signature asks for it: `in_channels`, `num_classes` or
    `out_channels`, `spatial_dims` (3), and unless the settings have them, `strides` (a triple between two levels) and
    `patch_size` or `img_size` (D, H, W). The setting `width` is a factor that multiplies `base_features` and
    `max_features`, each rounded to a whole number and at least 1. Settings reach the network as plain values: nothing
    in them is built.

    Raises:
        InputError: no network of that name, one that nobody trusts (`trust_network`), unknown settings, or values that
            the network refuses.
    """
    settings = dict(config)
    name = settings.pop("name", None)
    target = str(settings.pop("_target_", None) or NAMES.get(str(name), name))
    if target not in _trusted:
        raise InputError(
            f"network._target_={target}: is no network of e2enet, and a checkpoint could name any code; expected "
            f"one of e2enet's, or, if this one is known to you, trust=[{target}]"
        )
    maker = network_class(target)
    parameters = inspect.signature(maker).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "width" not in parameters and set(CHANNELS) & set(parameters):
        width = settings.pop("width", 1)
        for key in CHANNELS:
            if key in parameters and width != 1:
                settings[key] = max(1, round(width * settings.get(key, parameters[key].default)))
    unknown = [] if takes_any else sorted(settings.keys() - (parameters.keys() - SUPPLIED))
    if unknown:
        raise InputError(f"network {target} has no settings {unknown}; it has {sorted(parameters.keys() - SUPPLIED)}")
    known: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes, "out_channels": num_classes}
    known |= {"spatial_dims": 3, "strides": strides}
    if patch_size is not None:
        known |= {"patch_size": tuple(patch_size), "img_size": tuple(patch_size)}
    supplied = {key: value for key, value in known.items() if key in parameters}
    try:
        return maker(**{**supplied, **settings})
    except InputError:
        raise
    except Exception as error:  # of a user's class, whatever it raises
        raise InputError(f"network {target}: {first_line(error)}") from error


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


def network_class(target: str) -> type[nn.Module]:
    """The class of `torch.nn.Module` that a network's `_target_` names.

    Raises:
        InputError: there is none of that name.
    """
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:  # whatever importing a user's module raises is the user's to see
        message = f"network._target_={target}: cannot be imported ({first_line(error)}); expected a class on PYTHONPATH"
        raise InputError(message) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise InputError(f"network._target_={target}: expected a class of torch.nn.Module")
    return found


def is_e2enet(config: Mapping[str, Any]) -> bool:
    """Whether settings are those of E2ENet itself, which the engine and recomputation of activations know."""
    from e2enet.network.e2enet import E2ENet

    target = str(config.get("_target_") or NAMES.get(str(config.get("name"))))
    try:
        return network_class(target) is E2ENet
    except InputError:
        return False
