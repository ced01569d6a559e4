"""Build networks from the plain settings of a config or a checkpoint."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from e2enet.common.errors import InputError, first_line

# Arguments that the data and its plan supply to networks that have them.
SUPPLIED = frozenset({"in_channels", "num_classes", "out_channels", "spatial_dims"})
# Supplied too, unless a setting has the name: some networks use these names in another sense.
OFFERED = frozenset({"strides", "patch_size", "img_size"})
# Settings that count channels. The setting `width` multiplies them.
CHANNELS = ("base_features", "max_features")
# Checkpoints of earlier versions have a `name` instead of a `_target_`.
NAMES = {
    "e2enet": "e2enet.network.e2enet.E2ENet",
    "plain_unet": "e2enet.network.baselines.PlainUNet",
    "dynunet": "e2enet.network.baselines.DynUNet",
    "swin_unetr": "e2enet.network.baselines.SwinUNETR",
}


_trusted = {*NAMES.values(), "e2enet.network.E2ENet"}


def trust_network(target: str) -> None:
    """Allow networks of this class to be built in this process.

    Call it for a class that the user or a config names; a config is code. A checkpoint names its network too, but may
    come from anybody. Importing that class and calling it with the checkpoint's settings could run any code, so only
    the project's own networks are built without this call.
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

    Arguments known from the data and its plan are passed if the signature has them: `in_channels`, `num_classes` or
    `out_channels`, `spatial_dims` (3) and, unless the settings have them, `strides` (a triple between two levels) and
    `patch_size` or `img_size` (D, H, W). The setting `width` is a factor that multiplies `base_features` and
    `max_features`, each rounded to a whole number and at least 1. Settings reach the network as plain values: nothing
    in them is built.

    Raises:
        InputError: the network does not exist or is not trusted (`trust_network`), a setting is unknown, or the network
            refuses a value.
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
    except Exception as error:  # a user's class may raise anything
        raise InputError(f"network {target}: {first_line(error)}") from error


def head_weights(
    config: Mapping[str, Any], *, in_channels: int, num_classes: int, strides: Sequence[Sequence[int]]
) -> set[str]:
    """Return the names of the heads' weights: those whose shape depends on the number of classes."""
    # Not on the meta device: MONAI's SwinUNETR cannot be built there.
    with torch.random.fork_rng(devices=[]):
        one, other = (
            build_network(config, in_channels=in_channels, num_classes=count, strides=strides).state_dict()
            for count in (num_classes, num_classes + 1)
        )
    return {name for name, value in one.items() if value.shape != other[name].shape}


def network_class(target: str) -> type[nn.Module]:
    """Return the class of `torch.nn.Module` that a network's `_target_` names.

    Raises:
        InputError: it cannot be imported, or is no such class.
    """
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:  # a user's module may raise anything; the message reports it
        message = f"network._target_={target}: cannot be imported ({first_line(error)}); expected a class on PYTHONPATH"
        raise InputError(message) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise InputError(f"network._target_={target}: expected a class of torch.nn.Module")
    return found


def is_e2enet(config: Mapping[str, Any]) -> bool:
    """Return whether settings name E2ENet itself: only it has an engine and recomputed activations."""
    from e2enet.network.e2enet import E2ENet

    target = str(config.get("_target_") or NAMES.get(str(config.get("name"))))
    try:
        return network_class(target) is E2ENet
    except InputError:
        return False
