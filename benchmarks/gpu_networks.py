"""The networks that are compared on a GPU, how they are run in a precision, and a step of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu_options import DENSITY, GROUP, PRECISIONS, Network
from benchmarks.gpu_unet import PlainConvUNet
from e2enet.network import E2ENet
from e2enet.network.dsff import init_masks, set_group_size
from e2enet.network.fused.network import FusedNetwork

# Names in the tables and, as the key, on command lines and in JSON.
CONTENDERS = {
    "plain_unet": "PlainConvUNet",
    "plain": "plain",
    "fused": "fused",
    "implicit": "implicit",
    "groups": "groups of 16, S = 0.8",
    "compiled": "compiled",
}


def make_contender(name: str, sizes: Network, device: torch.device | str) -> tuple[Any, Any]:
    """Return a network in training mode and what runs it. E2ENet has all kernels, unless it runs groups of them.

    Networks of one size have the same weights. `compiled` compiles without inductor on a CPU, where that takes minutes.
    """
    torch.manual_seed(0)
    if name == "plain_unet":
        unet = PlainConvUNet(1, sizes.num_classes, sizes.strides, base_features=32 * sizes.base_features // 48)
        return unet.to(device).train(), unet
    network = E2ENet(1, sizes.num_classes, sizes.strides, base_features=sizes.base_features)
    if name == "groups":
        mask(network, groups=True)
    network.to(device).train()
    if name in ("fused", "implicit", "groups"):
        return network, FusedNetwork(network, groups=name == "groups", implicit=name == "implicit")
    if name == "compiled":
        network.compile(backend="inductor" if torch.device(device).type == "cuda" else "aot_eager")
    return network, network


def mask(network: nn.Module, *, groups: bool) -> None:
    """Draw masks of single kernels or of groups, at S = 0.8."""
    set_group_size(network, GROUP if groups else 1)
    init_masks(network, DENSITY, generator=torch.Generator().manual_seed(0))


@contextmanager
def precision(device: torch.device, name: str) -> Iterator[None]:
    """Run a block under autocast, or in float32. On a CPU the plain network then obeys autocast, as on a GPU."""
    dtype = PRECISIONS[name]
    with (
        mock.patch("e2enet.network.e2enet.half_precision_pays_on_cpu", lambda: True),
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        yield


def run_step(network: nn.Module, run: Any, x: Tensor, grads: Sequence[Tensor] | None, name: str) -> list[Tensor]:
    """Run forward and backward in a precision and return the logits of every head; gradients stay on the parameters.

    grads: of the logits; None: ones, which cost nothing to make.
    """
    network.zero_grad(set_to_none=True)
    with precision(x.device, name):
        logits = list(run(x))
    if grads is None:
        grads = [torch.ones((), dtype=one.dtype, device=one.device).expand_as(one) for one in logits]
    torch.autograd.backward(logits, [grad.to(one.dtype) for grad, one in zip(grads, logits, strict=True)])
    return logits


def exact_float32() -> None:
    """Let float32 be float32: no TF32 in convolutions and products."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def noise(*shape: int, device: torch.device, seed: int = 1) -> Tensor:
    """Return normal noise, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
