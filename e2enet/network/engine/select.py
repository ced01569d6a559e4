"""Choose what runs a network in inference and in training: an engine of this package, or torch with every kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError, first_line
from e2enet.network.cost import count_cost
from e2enet.network.dsff import density
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.known import unknown, unknown_in_training
from e2enet.network.engine.self_check import check_itself
from e2enet.network.half_precision import bfloat16_is_native, half_precision_pays_on_cpu
from e2enet.network.recompute import run_once

logger = logging.getLogger(__name__)

# On a CPU, training with active kernels only is faster up to this density and with at least this many channels at full
# resolution (`python -m benchmarks.training`).
LARGEST_DENSITY = 0.5
FEWEST_CHANNELS = 32
# Why only torch trains a network that the engine could otherwise run.
COMPILED = "training.compile=true compiles torch's own pass"
RECOMPUTED = "training.checkpoint_activations=true recomputes torch's own pass"
# Ways to take steps by a fused pass, and the arguments of `FusedNetwork`: with every kernel; with active kernels only,
# where masks have group granularity; with convolutions that prepare what they read.
FUSED_WAYS: dict[str, dict[str, bool]] = {"fused": {}, "groups": {"groups": True}, "implicit": {"implicit": True}}
ONLY_GROUPS = "only groups of kernels are multiplied alone (dsff.granularity=group), single ones on a CPU"
SECONDS = 0.5  # the least time for which a whole network is timed


def compact(model: nn.Module, *, choose: bool = True, bfloat16: bool = False) -> nn.Module:
    """Return a network for inference that runs a model's active kernels only; its logits differ by rounding.

    On a CPU it is a `CompactNetwork`, with copies of an E2ENet's weights and masks, in float32 and always in eval mode.
    On other devices it is a `FusedNetwork` by groups if the model is an E2ENet with group granularity; it uses the
    model's parameters and mode. If neither can run the model, the model itself is returned; `unsupported` says why.

    Args:
        model: any network, on the device where it will run. Sparse layers are those of `fusion_layers`.
        choose: on a CPU, run each convolution in the way that is fastest on this machine, with active kernels only or
            all of them. It is timed at the first forward pass of a shape, and remembered (`TimingCache`). False: active
            kernels only.
        bfloat16: allow bfloat16 if it is faster.

    Raises:
        InputError: the compact network's logits on a small input are not the model's.
    """
    device = _device(model)
    if unsupported(model, device) is not None:
        return model
    assert isinstance(model, E2ENet)
    if device.type != "cpu":
        return _fused(model, "engine=sparse", groups=True)
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
    """Return the network as `engine` runs it: itself (dense), or one that multiplies active kernels only (sparse).

    `compact` makes the sparse one, and `fused` gives a `FusedNetwork`. On a CPU `auto` chooses the sparse one if it can
    run and was faster on a patch (D, H, W); each of its layers then runs in its fastest way. With `amp_dtype` bfloat16,
    layers may run in it, and the fused one is tried too, if the processor has instructions for it. On a GPU it chooses
    the fastest of all that can run. Measured times are remembered, see `TimingCache`. The network must not change.

    Raises:
        InputError: engine=sparse or fused, but only torch can run the network.
    """
    if engine == "dense":
        return network
    if engine == "fused":
        return _fused(network.to(device), "engine=fused", fixed=True)
    if device.type == "cpu":  # `unsupported` checks where the weights are
        network.to(device)
    reason = unsupported(network, device)
    if engine == "sparse":
        if reason is not None:
            raise InputError(f"engine=sparse: {reason}; expected engine=auto or dense")
        return compact(network.to(device), choose=False)
    others: dict[str, nn.Module] = {}
    try:
        if reason is not None:
            raise InputError(reason)
        others["sparse"] = compact(network.to(device), bfloat16=amp_dtype == torch.bfloat16)
    except InputError as error:
        if device.type == "cpu":
            return _by_torch(network, str(error))
    if isinstance(network, E2ENet) and (device.type != "cpu" or (amp_dtype == torch.bfloat16 and bfloat16_is_native())):
        others |= _right_fused(network.to(device))
    return _fastest(network, others, device, patch_size, amp_dtype) if others else network


def samples_at_once(network: nn.Module, patch_size: Sequence[int]) -> int:
    """Return how many patches (D, H, W) a network wants in a batch on a CPU: 1, or what its own method says."""
    wanted = getattr(network, "samples_at_once", None)
    return 1 if wanted is None else int(wanted(tuple(patch_size)))


def select_training(
    network: nn.Module, engine: str, *, amp_dtype: torch.dtype | None, share: float | None = None
) -> Callable[[torch.Tensor], Any]:
    """Return what runs a network in training steps.

    That is itself (dense), itself compiled (compiled), a `FusedNetwork` (FUSED_WAYS), or what runs active kernels only
    (sparse). This is a `TrainingEngine` on a CPU and the same as groups elsewhere. See `takes_active_kernels` for
    `auto`; on a GPU, `fused.trial` replaces it by one of these before. Call it in training mode. amp_dtype: of the
    autocast that surrounds the steps. share: of active kernels, by which `auto` decides; None: the network's of now.

    Raises:
        InputError: engine=sparse or fused, but only torch can run the network.
    """
    if engine in FUSED_WAYS:
        return _fused(network, "training.engine=fused", **FUSED_WAYS[engine])
    if engine == "compiled":
        network.compile(dynamic=False)  # as `fused.trial` timed it
        return network
    if not takes_active_kernels(network, engine, amp_dtype, share):
        return network
    assert isinstance(network, E2ENet)
    if _device(network).type != "cpu":
        return compact(network)
    from e2enet.network.engine.training import TrainingEngine

    return _or_torch(network, engine, TrainingEngine)


def select_validation(
    network: nn.Module, engine: str, *, amp_dtype: torch.dtype | None, share: float | None = None
) -> nn.Module:
    """Return what runs a network in a run's validation and final prediction, by the same rule as `select_training`.

    On a CPU a sparse one holds the current weights and masks. A compiled run is validated uncompiled, since its windows
    have other sizes.
    """
    if engine in FUSED_WAYS:
        return _fused(network, "training.engine=fused", **FUSED_WAYS[engine])
    if not takes_active_kernels(network, engine, amp_dtype, share):
        return network
    found: nn.Module = _or_torch(network, engine, partial(compact, choose=False))
    return found


def takes_active_kernels(
    network: nn.Module, engine: str, amp_dtype: torch.dtype | None, share: float | None = None
) -> bool:
    """Return whether a run multiplies only the active kernels of its network.

    `auto` does so on a CPU if the engine supports the network, the network is wide, at most half of its fusion kernels
    are active, and no half precision pays there (see `half_precision`). The choice follows from the network and the
    machine, without timing: a resumed run continues as it began.

    Raises:
        InputError: engine=sparse, but only torch can run the network.
    """
    if engine in ("dense", "compiled"):
        return False
    device = _device(network)
    reason = unsupported_in_training(network, device) or unsupported(network, device)
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
    few = (density(network) if share is None else share) <= LARGEST_DENSITY
    return not half and few and network.features_per_level[0] >= FEWEST_CHANNELS


def unsupported(network: nn.Module, device: torch.device) -> str | None:
    """Return why a network's active kernels cannot be multiplied alone on a device; None if they can."""
    if device.type == "cpu":
        return unknown(network)
    from e2enet.network.fused.grouped import grouped_layers
    from e2enet.network.fused.network import unfusable

    if isinstance(network, E2ENet) and not grouped_layers(network):
        return f"on {device}, {ONLY_GROUPS}"
    return unfusable(network, device)


def unsupported_in_training(network: nn.Module, device: torch.device) -> str | None:
    """Return why only torch can train a network on a device; None if another way may."""
    if not isinstance(network, E2ENet):
        return f"{type(network).__name__} is no E2ENet"
    if network._compiled_call_impl is not None:
        return COMPILED
    if network.run_part is not run_once:
        return RECOMPUTED
    on_cpu, dtype = device.type == "cpu", next(network.parameters()).dtype
    if on_cpu and dtype != torch.float32:
        return f"its parameters are of {dtype}, and the engine computes in float32"
    return unknown_in_training(network, on_cpu=on_cpu)


def _or_torch(network: Any, engine: str, make: Callable[[Any], Any]) -> Any:
    """Return `make(network)`; with `auto`, the network itself if the engine does not reproduce its logits."""
    try:
        return make(network)
    except InputError as error:
        if engine == "sparse":
            raise
        return _by_torch(network, str(error))


def _by_torch(network: nn.Module, reason: str) -> nn.Module:
    """Return the network; print once why an E2ENet on a CPU is not run by its active kernels."""
    if isinstance(network, E2ENet) and _device(network).type == "cpu":
        _log_once(f"engine=auto: torch runs the network with every kernel: {reason}")
    return network


_log_once = cache(logger.warning)  # the network is a library too, and prints nothing


def _fused(network: nn.Module, setting: str, **how: Any) -> nn.Module:
    """Return the network's fused pass; raise InputError with the setting that asked for it if there is none."""
    from e2enet.network.fused.network import FusedNetwork

    try:
        if getattr(network, "run_part", run_once) is not run_once:
            raise InputError(RECOMPUTED)
        return FusedNetwork(cast(E2ENet, network), **how)
    except InputError as error:
        raise InputError(f"{setting}: {error}") from None


def _right_fused(network: nn.Module) -> dict[str, nn.Module]:
    """Return {"fused": the network's fused pass}, or nothing, with one line in the log, if it fails or is wrong."""
    try:
        fused = _fused(network, "engine=auto", fixed=True)
        check_itself(cast(E2ENet, network), fused, training=False)
        return {"fused": fused}
    except Exception as error:  # whatever a compiler or a driver raises
        _log_once(f"{type(error).__name__}: {first_line(error)}; torch runs the network")
        return {}


def _fastest(
    network: nn.Module,
    others: Mapping[str, nn.Module],
    device: torch.device,
    patch_size: Sequence[int],
    amp_dtype: torch.dtype | None,
) -> nn.Module:
    """Return the fastest of a network and the others that run it on patches, by remembered or new times.

    All take as many patches as the one that wants most at once (`samples_at_once`), each in batches of its own size.
    """
    from e2enet.network.engine.timing_cache import TimingCache

    assert isinstance(network, E2ENet)
    candidates = {**others, "torch": network}
    at_once = {name: samples_at_once(one, patch_size) for name, one in candidates.items()}
    x = torch.zeros(max(at_once.values()), network.in_channels, *patch_size, device=device)

    def run(candidate: nn.Module, batch_size: int) -> Tensor:
        for batch in x.split(batch_size):
            output = candidate(batch)
        head: Tensor = output[0] if isinstance(output, list) else output
        return head[0, 0, 0, 0, 0].cpu()  # waits for a GPU

    ways = {name: partial(partial, run, one, at_once[name]) for name, one in candidates.items()}
    cost = count_cost(network, patch_size)
    size, precision = " x ".join(map(str, patch_size)), f", {amp_dtype} allowed" if amp_dtype else ""
    size = f"{len(x)} of {size}" if len(x) > 1 else size
    where = f" on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    described = f"network of {cost.params} parameters and {cost.flops} FLOPs on {size}{precision}{where}"
    with torch.no_grad(), torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        return candidates[TimingCache().fastest(described, ways, SECONDS)]


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
