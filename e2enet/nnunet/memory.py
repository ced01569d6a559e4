"""The memory of a training step, counted without allocating any, in the unit of nnU-Net's planner."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# nnU-Net's planner counts the outputs of a network's convolutions, and takes 560 million of them for 8 GB at batch size
# 2. Its U-Net keeps 1.846 values for each that it counts (patches of 64 x 64 x 64 to 128 x 128 x 128): the outputs of
# convolutions and those of norms.
KEPT_PER_COUNTED = 1.846


def feature_map_size(network: nn.Module, patch_size: Sequence[int]) -> float:
    """Return how many outputs nnU-Net's planner would count in a U-Net that needs as much memory as a network.

    Args:
        network: Any network with an attribute `in_channels`. It stays as it is.
        patch_size: (D, H, W) in voxels.
    """
    return kept_values(network, patch_size) / KEPT_PER_COUNTED


def kept_values(network: nn.Module, patch_size: Sequence[int], in_channels: int | None = None) -> float:
    """Return how many numbers of 4 bytes a training step of one sample keeps for its backward pass.

    Counted on torch's `meta` device, where tensors have no memory. Tensors that share memory count once, parameters
    do not count.
    """
    channels = in_channels or int(network.in_channels)  # type: ignore[arg-type]
    on_meta = copy.deepcopy(network).to("meta").train()
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage, storage.nbytes()  # held, so that no other takes its address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        heads = on_meta(torch.empty(1, channels, *patch_size, device="meta"))
    del heads
    return math.fsum(size for _, size in kept.values()) / 4
