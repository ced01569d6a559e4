"""Choose how a GPU, or a CPU in bfloat16, takes training steps: by whichever way is right and fastest."""

from __future__ import annotations

import copy
import gc
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from e2enet.common.errors import first_line
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.select import select_training
from e2enet.network.engine.self_check import (
    NEGLIGIBLE,
    comparable_gradients,
    noise,
    relative_difference,
    small_size,
    sum_of_squares,
)
from e2enet.network.fused.grouped import grouped_layers
from e2enet.network.fused.network import FusedNetwork
from e2enet.system.determinism import without_tf32

logger = logging.getLogger(__name__)

WAYS = "dense", "fused", "implicit", "groups", "compiled", "sparse"
DENSE, FUSED, IMPLICIT, GROUPS, COMPILED, SPARSE = WAYS
RUNS = 3  # timed, after one untimed run that compiles kernels
# How far gradients may be from torch's in float32, as a share of their norm: without autocast each parameter's; with it
# all of them together, up to a share or up to so many times torch's own rounding, which grows with the levels: 0.04 to
# 0.1 in float16, 0.1 to 0.25 in bfloat16. A wrong term is as large as the gradient.
TOLERANCE, AMP_TOLERANCE, AMP_ROUNDINGS = 0.05, 0.2, 1.5


Make = Callable[[E2ENet], Any]  # returns what runs the network given


@dataclass(frozen=True)
class Trial:
    """One way to take a step: its seconds, forward and backward, or why it was not taken."""

    seconds: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Choice:
    """The fastest of the ways that are right, and every trial by its way."""

    way: str
    trials: Mapping[str, Trial]


def choose_way(
    network: E2ENet,
    *,
    batch_size: int,
    patch_size: Sequence[int],
    amp_dtype: torch.dtype | None = None,
    ways: Mapping[str, Make] | None = None,
) -> Choice:
    """Verify every way on a small input, time it on a batch of patches, and return the fastest.

    A way that fails, or that gives other logits or gradients than the network itself, is left out, with one line in the
    log. If torch's own way fails, for example for want of memory, the others are still tried.

    Args:
        network: in training mode, on the device where it will be trained. It stays as it is.
        batch_size, patch_size: of the training; (D, H, W).
        amp_dtype: of the autocast that will surround the steps.
        ways: what runs copies of the network, by name; None: those of `make_ways`.
    """
    device = next(network.parameters()).device
    # A norm of one voxel gives its bias. That is 0 in a new network, where the activation has no derivative.
    small = noise(network, 2, small_size(network, deepest=2))
    large = noise(network, batch_size, patch_size)
    own = copy.deepcopy(network)
    expected = _exact_values(own, own, small)
    amp_limit = AMP_TOLERANCE
    if amp_dtype is not None:
        rounding = _amp_difference(own, own, small, amp_dtype, expected)
        amp_limit = max(AMP_TOLERANCE, AMP_ROUNDINGS * rounding)  # the former if torch's gradients are NaN
    trials: dict[str, Trial] = {}
    for way, make in (make_ways(network) if ways is None else ways).items():
        try:
            trials[way] = _try(make, network, expected, small, large, amp_dtype, amp_limit)
        except Exception as error:  # whatever a compiler or a driver raises: the run goes on another way
            trials[way] = Trial(None, f"{type(error).__name__}: {first_line(error)}")
        gc.collect()  # copies and graphs of this way, some of which refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if trials[way].problem is not None:
            logger.warning(f"training.engine=auto: {way} is left out: {trials[way].problem}")
    timed = {way: trial.seconds for way, trial in trials.items() if trial.seconds is not None}
    return Choice(min(timed, key=timed.__getitem__) if timed else DENSE, trials)


def make_ways(network: E2ENet) -> dict[str, Make]:
    """Return what runs copies of a network in each way of a GPU; `groups` needs masks of group granularity."""

    def compiled(network: E2ENet) -> nn.Module:
        network.compile(dynamic=False)  # after the small input torch would take sizes for variable: slower code
        return network

    ways: dict[str, Make] = {
        DENSE: lambda network: network,
        FUSED: FusedNetwork,
        IMPLICIT: partial(FusedNetwork, implicit=True),
    }
    if grouped_layers(network):
        ways[GROUPS] = partial(FusedNetwork, groups=True)
    return ways | {COMPILED: compiled}


# What a CPU tries in bfloat16. Compiling takes minutes there, and is not tried.
CPU_WAYS: dict[str, Make] = {
    DENSE: lambda network: network,
    FUSED: FusedNetwork,
    SPARSE: partial(select_training, engine=SPARSE, amp_dtype=None),
}


def _try(
    make: Make,
    network: E2ENet,
    expected: list[Tensor],
    small: Tensor,
    large: Tensor,
    amp_dtype: torch.dtype | None,
    amp_limit: float,
) -> Trial:
    own = copy.deepcopy(network)
    run = make(own)
    found = _exact_values(own, run, small)
    negligible = NEGLIGIBLE * max(float(one.norm()) for one in expected)
    differences = [relative_difference(one, right, negligible) for one, right in zip(found, expected, strict=True)]
    wrong = float(torch.tensor(differences).max())  # NaN if one is: Python's max() may pass over it
    if not wrong <= TOLERANCE:  # NaN too
        return Trial(None, f"a parameter's gradient differs by {wrong:.0%} from torch's, more than {TOLERANCE:.0%}")
    if amp_dtype is not None:
        wrong = _amp_difference(own, run, small, amp_dtype, expected)
        if not wrong <= amp_limit:
            return Trial(None, f"gradients in {amp_dtype} differ by {wrong:.0%}, more than {amp_limit:.0%}")
    seconds = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        _step(own, run, large, amp_dtype)
        if large.device.type == "cuda":
            torch.cuda.synchronize(large.device)
        seconds.append(time.perf_counter() - start)
    return Trial(statistics.median(seconds[1:]))


def _exact_values(network: E2ENet, run: Any, x: Tensor) -> list[Tensor]:
    """Return the `_values` of a step in float32. TF32 would round gradients of many levels by more than TOLERANCE."""
    with without_tf32():
        return _values(network, _step(network, run, x, None))


def _amp_difference(network: E2ENet, run: Any, x: Tensor, amp_dtype: torch.dtype, expected: Sequence[Tensor]) -> float:
    """Return how far the `_values` of a step with autocast are from those expected, all of them together."""
    found = _values(network, _step(network, run, x, amp_dtype))
    return relative_difference(torch.cat(found), torch.cat(list(expected)))


def _step(network: E2ENet, run: Any, x: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Take a step without an optimizer: gradients stay on the parameters. Return the logits of each head."""
    network.zero_grad()
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        found = run(x)
    heads = found if isinstance(found, list) else [found]
    sum_of_squares(heads).backward()
    return [head.detach() for head in heads]


def _values(network: E2ENet, heads: Sequence[Tensor]) -> list[Tensor]:
    """Return the means of each head's logits and each gradient, as vectors on the CPU; parameters lose theirs."""
    means = [head.float().mean((0, 2, 3, 4)) for head in heads]
    gradients = comparable_gradients(network, {name: p.grad for name, p in network.named_parameters()})
    values = [value.cpu() for value in (*means, *(one.float().flatten() for one in gradients.values()))]
    network.zero_grad()
    return values
