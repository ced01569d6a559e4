"""Which engine runs a network, in inference and in training: one of this package, or torch with every kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.network.cost import count_cost
from e2enet.network.dsff import density
from e2enet.network.e2enet import E2ENet, half_precision_pays_on_cpu
from e2enet.network.engine.known import unknown, unknown_in_training
from e2enet.network.recompute import run_once

ENGINES = ("auto", "dense", "sparse")
# On a CPU, training with active kernels alone is faster up to this density and from these channels at full resolution
# on (`python -m benchmarks.training`).
LARGEST_DENSITY = 0.5
FEWEST_CHANNELS = 32
# Why only torch trains a network that the engine could else run.
COMPILED = "training.compile=true compiles torch's own pass"
RECOMPUTED = "training.checkpoint_activations=true recomputes torch's own pass"
ONLY_GROUPS = "only groups of kernels are multiplied alone (dsff.granularity=group), single ones on a CPU"
SECONDS = 0.5  # that a whole network is measured for, at least


def compact(model: nn.Module, *, choose: bool = True, bfloat16: bool = False) -> nn.Module:
    """A network for inference that runs a model's active kernels alone; its logits differ by rounding.

    On a CPU it is a `CompactNetwork`, with copies of an E2ENet's weights and masks, in float32 and always in eval mode.
    Elsewhere, for an E2ENet whose masks are of groups of kernels, it is a `GroupedNetwork`, with the parameters of the
    model and its mode. What neither can run is the model itself; `unsupported` says why.

    Args:
        model: any network, on the device where it will run. Sparse layers are those of `fusion_layers`.
        choose: on a CPU, let each convolution run the way that is fastest on this machine, active kernels alone or all
            of them; measured at the first forward of a shape, and remembered (`TimingCache`). Else active kernels
            alone.
        bfloat16: allow it, where it is faster.

    Raises:
        InputError: where the compact network's logits on a small input are not the model's.
    """
    device = _device(model)
    if unsupported(model, device) is not None:
        return model
    assert isinstance(model, E2ENet)
    if device.type != "cpu":
        from e2enet.network.engine.groups import GroupedNetwork

        return GroupedNetwork(model)
    from e2enet.network.engine.inference import CompactNetwork

    return CompactNetwork(model, choose=choose, bfloat16=bfloat16)


def select_engine(
    network: nn.Module,
    engine: str,
    *,
    device: torch.device,
    patch_size: Sequence[int],
    amp_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network as `engine` runs it: itself (dense), or one that multiplies active kernels alone (sparse).

    See `compact` for that. `auto` takes it where it can run and was faster on a patch (D, H, W); on a CPU each of its
    layers then runs the way that was fastest. What was measured is remembered, see `TimingCache`. With `amp_dtype`
    bfloat16, layers may run in it.

    Raises:
        InputError: engine=sparse, for what only torch can run.
    """
    if engine == "dense":
        return network
    if device.type == "cpu":  # where its weights are is looked at
        network.to(device)
    reason = unsupported(network, device)
    if reason is not None and engine == "sparse":
        raise InputError(f"engine=sparse: {reason}; expected engine=auto or dense")
    if reason is not None:
        return _by_torch(network, reason)
    assert isinstance(network, E2ENet)
    network.to(device)
    if engine == "sparse":
        return compact(network, choose=False)
    try:
        sparse = compact(network, bfloat16=amp_dtype == torch.bfloat16)
    except InputError as error:
        return _by_torch(network, str(error))
    return _faster(network, sparse, device, patch_size, amp_dtype)


def select_training(network: nn.Module, engine: str, *, amp_dtype: torch.dtype | None) -> Callable[[torch.Tensor], Any]:
    """What runs a network in training steps: itself (dense), or what multiplies active kernels alone (sparse).

    That is a `TrainingEngine` of it on a CPU and, for groups of kernels, a `GroupedNetwork` elsewhere. See
    `takes_active_kernels` for `auto`. Called in training mode; amp_dtype: of the autocast that it runs under.

    Raises:
        InputError: engine=sparse, for what only torch can run.
    """
    if not takes_active_kernels(network, engine, amp_dtype):
        return network
    assert isinstance(network, E2ENet)
    if _device(network).type != "cpu":
        return compact(network)
    from e2enet.network.engine.training import TrainingEngine

    return _or_torch(network, engine, TrainingEngine)


def select_validation(network: nn.Module, engine: str, *, amp_dtype: torch.dtype | None) -> nn.Module:
    """What runs a network in a run's validation and final prediction, by the same rule as `select_training`.

    On a CPU it holds the weights and masks as they are now.
    """
    if not takes_active_kernels(network, engine, amp_dtype):
        return network
    found: nn.Module = _or_torch(network, engine, partial(compact, choose=False))
    return found


def takes_active_kernels(network: nn.Module, engine: str, amp_dtype: torch.dtype | None) -> bool:
    """Whether a run multiplies the active kernels of its network alone.

    With `auto` it does on a CPU where it can, the network is wide and at most half of its fusion kernels are active,
    unless it runs in a half precision that pays (AMX). It follows from the network and the machine, without measuring:
    a run that is resumed goes on as it began.

    Raises:
        InputError: engine=sparse, for what only torch can run.
    """
    if engine == "dense":
        return False
    device = _device(network)
    reason = _unsupported_in_training(network, device) or unsupported(network, device)
    if engine == "sparse":
        if reason is not None:
            raise InputError(f"training.engine=sparse: {reason}; expected training.engine=auto or dense")
        return True
    if device.type != "cpu":
        return False
    if reason is not None:
        _by_torch(network, reason)
        return False
    assert isinstance(network, E2ENet)
    half = amp_dtype is not None and half_precision_pays_on_cpu()
    return not half and density(network) <= LARGEST_DENSITY and network.features_per_level[0] >= FEWEST_CHANNELS


def unsupported(network: nn.Module, device: torch.device) -> str | None:
    """Why active kernels of a network alone cannot be multiplied on a device; None where they can."""
    if device.type == "cpu":
        return unknown(network)
    from e2enet.network.engine.groups import grouped_layers

    if not isinstance(network, E2ENet):
        return f"{type(network).__name__} is no E2ENet"
    return None if grouped_layers(network) else f"on {device}, {ONLY_GROUPS}"


def _unsupported_in_training(network: nn.Module, device: torch.device) -> str | None:
    if not isinstance(network, E2ENet):
        return f"{type(network).__name__} is no E2ENet"
    if network._compiled_call_impl is not None:
        return COMPILED
    if network.run_part is not run_once:
        return RECOMPUTED
    dtype = next(network.parameters()).dtype
    if dtype != torch.float32:
        return f"its parameters are of {dtype}, and the engine computes in float32"
    return unknown_in_training(network) if device.type == "cpu" else None


def _or_torch(network: Any, engine: str, make: Callable[[Any], Any]) -> Any:
    """What `make` makes of a network; with `auto` the network itself, where the engine does not find its logits."""
    try:
        return make(network)
    except InputError as error:
        if engine == "sparse":
            raise
        return _by_torch(network, str(error))


def _by_torch(network: nn.Module, reason: str) -> nn.Module:
    """The network; why an E2ENet is not run by its active kernels is said, once."""
    if isinstance(network, E2ENet) and _device(network).type == "cpu":
        _say_once(f"engine=auto: torch runs the network with every kernel: {reason}")
    return network


_say_once = cache(say)


def _faster(
    network: E2ENet,
    sparse: nn.Module,
    device: torch.device,
    patch_size: Sequence[int],
    amp_dtype: torch.dtype | None,
) -> nn.Module:
    """The faster of both on a patch, as it is remembered or measured now."""
    from e2enet.network.engine.timing_cache import TimingCache

    x = torch.zeros(1, network.in_channels, *patch_size, device=device)

    def run(candidate: nn.Module) -> Tensor:
        output = candidate(x)
        head: Tensor = output[0] if isinstance(output, list) else output
        return head[0, 0, 0, 0, 0].cpu()  # waits for a GPU

    ways = {name: partial(partial, run, one) for name, one in (("sparse", sparse), ("torch", network))}
    cost = count_cost(network, patch_size)
    size, precision = " x ".join(map(str, patch_size)), f", {amp_dtype} allowed" if amp_dtype else ""
    where = f" on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    described = f"network of {cost.params} parameters and {cost.flops} FLOPs on {size}{precision}{where}"
    with torch.no_grad(), torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        return sparse if TimingCache().fastest(described, ways, SECONDS) == "sparse" else network


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
