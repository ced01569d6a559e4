"""Stop a training whose processes hold different kernel masks.

Masks are no parameters: data-parallel training does not synchronise them. They are equal because every process computes
them from the same weights, all-reduced gradients and random draws. Faulty hardware or a change to the code would break
this silently, and every density that the run reports would be wrong. The check is cheap: eight bytes per layer and
update.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, distributed, nn

from e2enet.network import dsff
from e2enet.system.ranks import in_process_group


def require_equal_masks(model: nn.Module, moment: str) -> None:
    """Compare the masks of all processes, which must call this together. A single process compares nothing.

    Args:
        model: The network, or the module around it.
        moment: Time of the check, for the message ("after update 3 at step 3600").

    Raises:
        RuntimeError: masks differ. Raised on every process; names the layers that differ and their ranks.
    """
    layers = dsff.fusion_layers(model)
    if not layers or not in_process_group():
        return
    device = next(iter(layers.values())).kernel_mask.device  # NCCL moves tensors of the GPU only
    own = torch.tensor([mask_digest(layer.kernel_mask) for layer in layers.values()], device=device)
    everyones = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyones, own)
    differing = [
        f"{name} on {', '.join(f'rank {rank}' for rank in ranks)}"
        for layer, name in enumerate(layers)
        if (ranks := [rank for rank, digests in enumerate(everyones) if digests[layer] != everyones[0][layer]])
    ]
    if differing:
        raise RuntimeError(
            f"kernel masks are not the same on all processes {moment}; other than on rank 0: {'; '.join(differing)}"
        )


def mask_digest(mask: Tensor) -> int:
    """Return the first 8 bytes of a mask's SHA-256 as a signed integer that int64 holds."""
    bits = np.packbits(mask.detach().cpu().numpy())
    return int.from_bytes(hashlib.sha256(bits.tobytes()).digest()[:8], "big", signed=True)
