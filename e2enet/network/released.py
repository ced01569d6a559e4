"""Weights of the authors' released code (boqian333/E2ENet-Medical) in an E2ENet of this package.

Names there (spec section 7), for a network of L levels: the encoder is `conv_blocks_context.{level}`; a fusion node
X[i, j] is `loc{z}.{j - 1}` with z = L - 1 - (i + j), its transposed convolution `up{z}.{j - 1}`; the U-Net variant's
decoder is `conv_blocks_localization.{u}` and `tu.{u}` with u = 0 at the deepest level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from e2enet.network.decoders import FusionGrid
from e2enet.network.e2enet import E2ENet

_PARAMETERS = {
    "conv.weight": "conv.weight",
    "conv.bias": "conv.bias",
    "norm.weight": "instnorm.weight",
    "norm.bias": "instnorm.bias",
}


@torch.no_grad()
def load_released_state_dict(model: E2ENet, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the released code's weights into `model`, strictly; values are cast to the model's dtype.

    A released checkpoint holds no masks: the model's masks stay as they are.

    Raises:
        ValueError: naming every missing key, every key left over and every shape that differs; nothing is copied.
    """
    parameters = dict(model.named_parameters())
    names = dict(_released_names(model))
    problems = [f"missing: {name}" for name in names.values() if name not in state_dict]
    problems += [f"not used by this network: {name}" for name in sorted(state_dict.keys() - set(names.values()))]
    problems += [
        f"{released}: shape {tuple(state_dict[released].shape)}, this network has {tuple(parameters[ours].shape)}"
        for ours, released in names.items()
        if released in state_dict and state_dict[released].shape != parameters[ours].shape
    ]
    if problems:
        raise ValueError("the released state dict does not fit the network:\n  " + "\n  ".join(problems))
    for ours, released in names.items():
        parameters[ours].copy_(state_dict[released])


def _released_names(model: E2ENet) -> Iterator[tuple[str, str]]:
    """Yield (our parameter name, the released code's) for every parameter of `model`."""
    levels = len(model.features_per_level)
    for level in range(levels):
        for block in range(2):
            released = f"{level}.{block}.blocks.0" if level == levels - 1 else f"{level}.blocks.{block}"
            yield from _block_names(f"encoder.{level}.{block}", f"conv_blocks_context.{released}")
    if isinstance(model.decoder, FusionGrid):
        yield from _grid_names(model.decoder, levels)
    else:
        for level in range(levels - 1):
            u = levels - 2 - level
            yield f"decoder.ups.{level}.weight", f"tu.{u}.weight"
            yield f"heads.{level}.weight", f"seg_outputs.{u}.weight"
            for block in range(2):
                yield from _block_names(
                    f"decoder.stages.{level}.{block}", f"conv_blocks_localization.{u}.{block}.blocks.0"
                )


def _grid_names(grid: FusionGrid, levels: int) -> Iterator[tuple[str, str]]:
    for k, nodes in enumerate(grid.columns):
        for level in range(levels - 1 - k):
            node = f"decoder.columns.{k}.{level}"
            z = levels - 2 - k - level
            yield f"{node}.up.weight", f"up{z}.{k}.weight"
            for block in range(len(nodes[level].blocks)):  # type: ignore[index]
                yield from _block_names(f"{node}.blocks.{block}", f"loc{z}.{k}.{block}.blocks.0")
    for level in range(grid.num_heads):
        yield f"heads.{level}.weight", f"seg_outputs.{level}.weight"


def _block_names(ours: str, released: str) -> Iterator[tuple[str, str]]:
    for our_part, released_part in _PARAMETERS.items():
        yield f"{ours}.{our_part}", f"{released}.{released_part}"
