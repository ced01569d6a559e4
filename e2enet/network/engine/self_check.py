"""Compare the engine's logits and gradients with the network's on a small input, before the engine is used.

`known` checks what the engine supports. This finds the rest: code that a processor runs wrongly, or a method that was
replaced for a whole class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.network.dsff import expand_mask, fusion_layers
from e2enet.network.e2enet import E2ENet

TOLERANCE = 0.01  # of the largest logit; rounding gives about 1e-5
GRADIENT_TOLERANCE = 0.05  # of the norm of a parameter's gradient; rounding gives about 1e-3, a wrong term 1
NEGLIGIBLE = 1e-3  # gradients smaller than this share of the largest are mostly rounding
FEWEST_VOXELS = 4  # along each axis
# Sizes from which the engine runs its code for whole patches: stores past the caches, statistics from sums of tiles.
ENGINE_VOXELS = (16, 32, 32)
ADVICE = "expected engine=dense for this network"


def check_itself(
    network: E2ENet, run: Callable[[Tensor], Any], *, training: bool, fewest: Sequence[int] = (FEWEST_VOXELS,) * 3
) -> None:
    """Compare the logits of `run` on a small input with the network's, in float32, in training or eval mode.

    The input is random, the same each time, and as small as the strides and `fewest` (D, H, W) allow; it lies where the
    network does. Heads whose own logits are not finite are not compared.

    Raises:
        InputError: number or shapes of the logits differ, or their values by more than TOLERANCE.
    """
    size = small_size(network, fewest=fewest)
    device = next(network.parameters()).device
    x = noise(network, 1, size)
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


def check_gradients(network: E2ENet, run: Callable[[Tensor], Any]) -> None:
    """Compare the gradients of `run` on a small input with the network's, in float32, in the network's mode.

    See `comparable_gradients` for what is compared.

    Raises:
        InputError: the gradient of a parameter differs by more than GRADIENT_TOLERANCE.
    """
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if not trained:
        return
    x = noise(network, 1, small_size(network, deepest=2))  # a norm of one voxel gives its bias, whatever it reads
    gradients = []
    for way in (partial(E2ENet.forward, network), run):
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            loss = sum_of_squares(_heads(way(x)))
        own = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
        gradients.append(comparable_gradients(network, dict(zip(trained, own, strict=True))))
    expected, found = gradients
    negligible = NEGLIGIBLE * max((float(one.norm()) for one in expected.values()), default=0.0)
    for name, right in expected.items():
        difference = relative_difference(found[name], right, negligible)
        if torch.isfinite(right).all() and not difference <= GRADIENT_TOLERANCE:  # NaN fails too
            raise InputError(
                f"the engine's gradient of {name} differs from the network's by {difference:.0%} on an input of "
                f"{tuple(x.shape[2:])}, of which rounding is below {GRADIENT_TOLERANCE:.0%}; {ADVICE}"
            )


def comparable_gradients(network: E2ENet, gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return the gradients by parameter's name that two right ways have alike: of inactive kernels 0.

    Left out are parameters without gradient, and biases before a norm, whose gradients are nothing but rounding.
    """
    masks = {f"{name}.weight": layer.kernel_mask for name, layer in fusion_layers(network).items()}
    return {
        name: own * expand_mask(masks[name], own) if name in masks else own
        for name, own in gradients.items()
        if own is not None and not name.endswith(".conv.bias")
    }


def sum_of_squares(heads: Sequence[Tensor]) -> Tensor:
    """Return a loss in which every logit counts, with another weight for every class."""
    weights = [torch.linspace(0.5, 1.5, head.shape[1], device=head.device).view(-1, 1, 1, 1) for head in heads]
    return torch.stack(
        [(head.float() * weight).square().mean() for head, weight in zip(heads, weights, strict=True)]
    ).sum()


def relative_difference(found: Tensor, expected: Tensor, negligible: float = 1e-30) -> float:
    """Return the norm of the difference as a share of the expected vector's norm, or of `negligible` if larger."""
    return float((found - expected).norm()) / max(float(expected.norm()), negligible)


def small_size(network: E2ENet, deepest: int = 1, fewest: Sequence[int] = (FEWEST_VOXELS,) * 3) -> tuple[int, int, int]:
    """Return (D, H, W): the least sizes of `fewest` or more that the strides divide.

    deepest: voxels along each axis of the deepest level, at least.
    """
    total = [1, 1, 1]
    for stride in network.strides:
        total = [t * step for t, step in zip(total, stride, strict=True)]
    depth, height, width = (max(deepest, -(-least // t)) * t for least, t in zip(fewest, total, strict=True))
    return depth, height, width


def noise(network: E2ENet, batch_size: int, size: Sequence[int]) -> Tensor:
    """Return random inputs (B, C, D, H, W) where the network lies, the same each time."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, network.in_channels, *size, generator=draw).to(next(network.parameters()).device)


def _heads(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]
