"""Initial weights and masks of a run, taken from another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from e2enet.common.console import say
from e2enet.common.errors import InputError, raise_problems
from e2enet.data.formats.scheme import LabelScheme
from e2enet.inference.checkpoint import load_model, read_hyper_parameters, weight_problems
from e2enet.network import dsff
from e2enet.network.build import head_weights


def load_initial_weights(network: nn.Module, checkpoint: Path, masks: Mapping[str, Any]) -> None:
    """Copy a checkpoint's weights and masks into a network of the same shape; only the heads may differ.

    Heads of another shape, as for other classes, keep the network's own initial weights. A message names them.

    Args:
        network: the run's, as built.
        checkpoint: a checkpoint file, or a run folder (its best.ckpt).
        masks: the config group `dsff`. If it is enabled, the masks of the checkpoint are kept. They must have the
            group's granularity and its number of active kernels in each layer. If the checkpoint has no masks, they
            are drawn later. If the group is not enabled, every kernel is active; kernels that the checkpoint had
            pruned start at zero.

    Raises:
        InputError: no such checkpoint, other shapes, or masks of another granularity or density.
    """
    loaded = load_model(checkpoint)
    heading = f"{loaded.path}: its weights do not fit this run's network:"
    heads = check_shapes(network, loaded.network, read_hyper_parameters(loaded.path), heading)
    if heads:
        say(f"{loaded.path}: all its weights are taken but those of heads of another shape: {', '.join(heads)}")
    layers = dsff.fusion_layers(loaded.network)
    if not masks["enabled"]:
        for layer in layers.values():
            layer.kernel_mask.fill_(True)
    elif not all(bool(layer.kernel_mask.all()) for layer in layers.values()):
        _check_granularity(network, loaded.network, loaded.path)
        _check_density(loaded.network, masks, loaded.path)
    own = network.state_dict()
    network.load_state_dict({**loaded.network.state_dict(), **{name: own[name] for name in heads}})


def check_shapes(network: nn.Module, source: nn.Module, settings: Mapping[str, Any], heading: str) -> list[str]:
    """Compare the weights of two networks; return the names of head weights whose shapes differ.

    `settings` are the hyper-parameters of the training module of `source`: "network", "dataset" and "plan".

    Raises:
        InputError: lists every other weight that only one network has, or that differs in shape.
    """
    dataset = settings["dataset"]
    heads = head_weights(
        settings["network"],
        in_channels=len(dataset["channels"]),
        num_classes=LabelScheme.from_plain(dataset).num_outputs,
        strides=settings["plan"]["strides"],
    )
    own, other = network.state_dict(), source.state_dict()
    replaced = [name for name in own if name in heads and own[name].shape != other[name].shape]
    raise_problems(weight_problems(_without(own, replaced), _without(other, replaced)), heading)
    return replaced


def _without(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in names}


def _check_granularity(network: nn.Module, source: nn.Module, path: Path) -> None:
    sources = dsff.fusion_layers(source)
    for name, layer in dsff.fusion_layers(network).items():
        if layer.group_size != sources[name].group_size:
            raise InputError(
                f"{path}: its masks are of groups of {sources[name].group_size} output channels (1: single kernels), "
                f"this run's of {layer.group_size}; give dsff.granularity and dsff.group_size as they were, or "
                "dsff=dense"
            )


def _check_density(source: nn.Module, masks: Mapping[str, Any], path: Path) -> None:
    wanted = dsff.active_kernels(
        source, masks["density"], start=masks["start"], density_by_dim0=masks["density_by_dim0"]
    )
    found = {name: int(layer.kernel_mask.sum()) for name, layer in dsff.fusion_layers(source).items()}
    if masks.get("prune_over") == "network" and sum(found.values()) == sum(wanted.values()):
        return
    for name, active in found.items():
        if active != wanted[name]:
            raise InputError(
                f"{path}: its masks have density {dsff.density(source):.3g}, {active} active "
                f"kernels in {name}, where dsff.density={masks['density']} means {wanted[name]}; give dsff.density, "
                "dsff.start and dsff.density_by_dim0 as they were, or dsff=dense"
            )
