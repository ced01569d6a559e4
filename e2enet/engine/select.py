"""Which engine runs a network: the compact one of this package, or torch with every kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from e2enet.common.errors import InputError
from e2enet.network.cost import count_cost
from e2enet.network.e2enet import E2ENet

ENGINES = ("auto", "dense", "sparse")
LARGEST_DEPTH_STRIDE = 4  # of a compact network: so many slices of each lane are told by the bits of one integer


def select_engine(
    network: nn.Module,
    engine: str,
    *,
    device: torch.device,
    patch_size: Sequence[int],
    amp_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network as `engine` runs it: itself (dense), or a `CompactNetwork` of it (sparse).

    `auto` is the compact one where it can run and was faster on a patch (D, H, W); each of its layers then runs the way
    that was fastest. What was measured is remembered, see `Choices`. With `amp_dtype` bfloat16, layers may run in it.

    Raises:
        InputError: engine=sparse, for what only torch can run.
    """
    if engine == "dense":
        return network
    reason = unsupported(network, device)
    if reason is not None:
        if engine == "sparse":
            raise InputError(f"engine=sparse: {reason}; expected engine=auto or dense")
        return network
    assert isinstance(network, E2ENet)
    from e2enet.engine.choice import Choices
    from e2enet.engine.compact import CompactNetwork

    bfloat16 = amp_dtype == torch.bfloat16
    if engine == "sparse":
        return CompactNetwork(network, choose=False)
    compact = CompactNetwork(network, bfloat16=bfloat16)
    x = torch.zeros(1, network.in_channels, *patch_size)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        ways = {"compact": partial(compact, x), "torch": partial(network, x)}
        cost = count_cost(network, patch_size)
        size = " x ".join(map(str, patch_size))
        precision = ", bfloat16 allowed" if bfloat16 else ""
        described = f"network of {cost.params} parameters and {cost.flops} FLOPs on {size}{precision}"
        return compact if Choices().fastest(described, ways) == "compact" else network


def unsupported(network: nn.Module, device: torch.device) -> str | None:
    """Why the compact engine cannot run a network on a device; None where it can."""
    if device.type != "cpu":
        return f"active kernels alone are multiplied on a CPU only, not on {device}"
    if not isinstance(network, E2ENet):
        return f"{type(network).__name__} is no E2ENet"
    if max(depth for depth, _, _ in network.strides) > LARGEST_DEPTH_STRIDE:
        return f"its strides {network.strides} are larger along the depth than {LARGEST_DEPTH_STRIDE}"
    return None
