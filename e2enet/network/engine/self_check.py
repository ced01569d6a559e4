"""Compare the engine's logits with the network's on a small input, before the engine is used.

`known` checks what the engine supports. This finds the rest: code that a processor runs wrongly, or a method that was
replaced for a whole class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.network.e2enet import E2ENet

TOLERANCE = 0.01  # of the largest logit; rounding gives about 1e-5
FEWEST_VOXELS = 4  # along each axis
ADVICE = "expected engine=dense for this network"


def check_itself(network: E2ENet, run: Callable[[Tensor], Any], *, training: bool) -> None:
    """Compare the logits of `run` on a small input with the network's, in float32, in training or eval mode.

    The input is random, the same each time, and as small as the strides allow; it lies where the network does. Heads
    whose own logits are not finite are not compared.

    Raises:
        InputError: number or shapes of the logits differ, or their values by more than TOLERANCE.
    """
    size = small_size(network)
    device = next(network.parameters()).device
    x = torch.randn(1, network.in_channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    before, network.training = network.training, training
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            expected, found = _heads(E2ENet.forward(network, x)), _heads(run(x))
    finally:
        network.training = before
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=False)):
        shapes = [[tuple(head.shape) for head in heads] for heads in (found, expected)]
        raise InputError(f"the engine gives logits of {shapes[0]} on {size}, the network of {shapes[1]}; {ADVICE}")
    for level, (own, logits) in enumerate(zip(found, expected, strict=True)):
        largest = float(logits.abs().max())
        if not torch.isfinite(logits).all():
            continue
        difference = float((own - logits).abs().max())
        if not difference <= TOLERANCE * largest + 1e-4:  # NaN fails too
            raise InputError(
                f"the engine's logits of head {level} differ from the network's by {difference:.3g} on an input of "
                f"{size}; the largest is {largest:.3g}, of which rounding is below {TOLERANCE:.0%}; {ADVICE}"
            )


def small_size(network: E2ENet, deepest: int = 1) -> tuple[int, int, int]:
    """Return (D, H, W): the least sizes of FEWEST_VOXELS or more that the strides divide.

    deepest: voxels along each axis of the deepest level, at least.
    """
    total = [1, 1, 1]
    for stride in network.strides:
        total = [t * step for t, step in zip(total, stride, strict=True)]
    depth, height, width = (max(deepest, -(-FEWEST_VOXELS // t)) * t for t in total)
    return depth, height, width


def _heads(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]
