"""Which engine runs a network, in inference and in training: one of this package, or torch with every kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from e2enet.common.errors import InputError
from e2enet.network.cost import count_cost
from e2enet.network.dsff import density
from e2enet.network.e2enet import E2ENet, half_precision_pays_on_cpu
from e2enet.network.recompute import run_once

ENGINES = ("auto", "dense", "sparse")
# Training with active kernels alone is faster up to this density and from these channels at full resolution on
# (`python -m benchmarks.training`).
LARGEST_DENSITY = 0.5
FEWEST_CHANNELS = 32
# Why only torch trains a network that the engine could else run.
COMPILED = "training.compile=true compiles torch's own pass"
RECOMPUTED = "training.checkpoint_activations=true recomputes torch's own pass"
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


def select_training(network: nn.Module, engine: str) -> Callable[[torch.Tensor], Any]:
    """What runs a network in training steps: itself (dense), or a `TrainingEngine` of it (sparse).

    `auto` is the latter where it can run, the network is wide and at most half of its fusion kernels are active, unless
    autocast to bfloat16 is on and pays (AMX). It follows from the network and the machine, without measuring: a run
    that is resumed goes on as it began. Called in training mode, within the autocast of the step.

    Raises:
        InputError: engine=sparse, for what only torch can run.
    """
    if engine == "dense":
        return network
    reason = unsupported(network, next(network.parameters()).device) or _unsupported_in_training(network)
    if reason is not None:
        if engine == "sparse":
            raise InputError(f"training.engine=sparse: {reason}; expected training.engine=auto or dense")
        return network
    assert isinstance(network, E2ENet)
    half = torch.is_autocast_enabled("cpu") and half_precision_pays_on_cpu()
    slower = half or density(network) > LARGEST_DENSITY or network.features_per_level[0] < FEWEST_CHANNELS
    if engine == "auto" and slower:
        return network
    from e2enet.engine.training import TrainingEngine

    return TrainingEngine(network)


def _unsupported_in_training(network: Any) -> str | None:
    if network._compiled_call_impl is not None:
        return COMPILED
    if network.run_part is not run_once:
        return RECOMPUTED
    dtype = next(network.parameters()).dtype
    if dtype != torch.float32:
        return f"its parameters are of {dtype}, and the engine computes in float32"
    return None


def unsupported(network: nn.Module, device: torch.device) -> str | None:
    """Why the compact engine cannot run a network on a device; None where it can."""
    if device.type != "cpu":
        return f"active kernels alone are multiplied on a CPU only, not on {device}"
    if not isinstance(network, E2ENet):
        return f"{type(network).__name__} is no E2ENet"
    if max(depth for depth, _, _ in network.strides) > LARGEST_DEPTH_STRIDE:
        return f"its strides {network.strides} are larger along the depth than {LARGEST_DEPTH_STRIDE}"
    return None
