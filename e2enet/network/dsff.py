"""Dynamic sparse feature fusion (DSFF): kernel masks of fusion layers, pruned by weight and regrown elsewhere.

A *kernel* is the (k_d, k_h, k_w) slice of one (dim 0, dim 1) pair of a convolution's weight; a layer's mask is a bool
buffer `kernel_mask` of shape (dim 0, dim 1). Density is the share of active kernels. One update prunes the active
kernels of smallest L1 norm and regrows as many inactive ones, so the number of active kernels of a layer never
changes (arXiv 2312.04727, section on DSFF; spec section 3). `set_group_size` lets groups of output channels share their
inputs instead (network.granularity).

Everything here is plain functions on tensors and modules. They serve any network: `register_fusion_layer` marks a
convolution, `fusion_layers` finds the marked ones. Nothing keeps a copy of a mask, so a mask may be written in place.
E2ENet's own layers, its engine and `count_cost` obey it at once (`layers.active_weight`). Other convolutions do not
read masks: they obey only after `apply_masks` has zeroed their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from e2enet.network.erdos_renyi import erdos_renyi_kernel as erdos_renyi_kernel
from e2enet.network.granularity import active_units, regrow_units, unit_mask, unit_shape
from e2enet.network.kernels import Generator, expand_mask
from e2enet.network.kernels import kernel_scores as kernel_scores
from e2enet.network.kernels import prune_count as prune_count
from e2enet.network.kernels import prune_kernels as prune_kernels
from e2enet.network.kernels import regrow_kernels as regrow_kernels
from e2enet.network.mask_update import Rule, replace_kernels


def register_fusion_layer(conv: Any, *, flows: Mapping[str, int] | None = None) -> None:
    """Give a convolution the buffer `kernel_mask`, all True, and `group_size` 1, so that the functions below find it.

    `flows` names consecutive parts of dim 1 (the input channels) and their sizes, such as
    {"forward": 48, "up": 48, "down": 0}; `flow_shares` reports active kernels by these names.
    """
    weight = conv.weight
    if not isinstance(weight, Tensor) or weight.ndim < 3:
        raise ValueError(f"a fusion layer is a convolution with a weight of 3 to 5 dimensions, got {conv}")
    if flows is not None and sum(flows.values()) != weight.shape[1]:
        raise ValueError(f"flows {dict(flows)} must sum to the {weight.shape[1]} input channels")
    conv.register_buffer("kernel_mask", torch.ones(weight.shape[:2], dtype=torch.bool, device=weight.device))
    conv.flows = dict(flows) if flows is not None else None
    conv.group_size = 1


def fusion_layers(model: nn.Module) -> dict[str, Any]:
    """Return the registered fusion layers by name: the modules, each with `.weight` and a bool buffer `kernel_mask`."""
    return {name: module for name, module in model.named_modules() if "kernel_mask" in module._buffers}


def set_group_size(model: nn.Module, group_size: int) -> None:
    """Set the granularity of every fusion layer's mask: `group_size` output channels form a group; 1 is single kernels.

    Call it before masks are drawn. Existing masks must already have this structure.

    Raises:
        ValueError: `group_size` is no whole number >= 1, a convolution has `groups` of its own, or a mask has another
            structure.
    """
    if not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"group_size must be a whole number >= 1, got {group_size!r}")
    for name, layer in fusion_layers(model).items():
        if group_size > 1 and layer.groups > 1:
            raise ValueError(f"{name}: output channels of a convolution with groups={layer.groups} share no inputs")
        layer.group_size = group_size
        try:
            active_units(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def prune_fraction(step: int, total_steps: int, *, initial: float = 0.5, final: float = 0.001) -> float:
    """Return the share of active kernels to replace at `step`: cosine from `initial` (0) to `final` (total_steps).

    f(t) = final + (initial - final) * (1 + cos(pi t / T)) / 2; later steps keep `final`.
    """
    if total_steps < 1 or step < 0:
        raise ValueError(f"need step >= 0 and total_steps >= 1, got {step} and {total_steps}")
    progress = min(step, total_steps) / total_steps
    return final + (initial - final) * (1 + math.cos(math.pi * progress)) / 2


def init_masks(
    model: nn.Module,
    density: float,
    *,
    generator: Generator = None,
    start: str = "uniform",
    density_by_dim0: Mapping[int, float] | None = None,
) -> None:
    """Draw every fusion layer's mask at random and zero the inactive weights in place.

    Args:
        density: share of active kernels over the network, in (0, 1].
        generator: CPU generator of the draw.
        start: "uniform" gives each layer round(density * kernels), each group round(density * inputs); "erk"
            (Erdos-Renyi-kernel, Evci et al. 2020) gives small layers a larger share at the same total.
        density_by_dim0: dim 0 of a layer's weight -> its density, which overrides `density`. The released code uses
            {48: 0.2}.

    Every layer keeps at least one kernel, every group one input.
    """
    counts = active_kernels(model, density, start=start, density_by_dim0=density_by_dim0)
    for name, layer in fusion_layers(model).items():
        mask, (rows, units) = layer.kernel_mask, unit_shape(layer)
        none = torch.zeros(rows, units, dtype=torch.bool, device=mask.device)
        each = counts[name] * units // mask.numel()
        mask.copy_(unit_mask(layer, regrow_units(none, [each] * rows, generator=generator)))
    apply_masks(model)


def active_kernels(
    model: nn.Module, density: float, *, start: str = "uniform", density_by_dim0: Mapping[int, float] | None = None
) -> dict[str, int]:
    """Return how many kernels of every fusion layer `init_masks` makes active, by the layer's name."""
    layers = fusion_layers(model)
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density}")
    if start == "uniform":
        densities = dict.fromkeys(layers, density)
    elif start == "erk":
        densities = erdos_renyi_kernel({name: tuple(layer.weight.shape) for name, layer in layers.items()}, density)
    else:
        raise ValueError(f'start must be "uniform" or "erk", got {start!r}')
    counts = {}
    for name, layer in layers.items():
        mask, (_, units) = layer.kernel_mask, unit_shape(layer)
        share = (density_by_dim0 or {}).get(mask.shape[0], densities[name])
        counts[name] = max(1, round(share * units)) * (mask.numel() // units)
    return counts


def update_masks(
    model: nn.Module,
    fraction: float,
    *,
    scores: Mapping[str, Tensor] | None = None,
    generator: Generator = None,
) -> dict[str, float]:
    """Prune and regrow every fusion layer once and zero the inactive weights in place.

    Kernels just pruned may regrow. Regrown weights are zero: a dead kernel holds zeros already, and a kernel that is
    pruned and regrown in the same update loses its weights, as it would one step later. With groups, the connections
    with the smallest mean norm of their kernels are pruned over the whole layer. Each group then regrows as many as it
    lost, by the mean score of their kernels. `mask_update.replace_kernels` knows other rules.

    Args:
        fraction: share of each layer's active kernels, or of its groups' connections, to replace.
        scores: layer name -> (dim0, dim1); the largest grow (gradient growth). None grows at random.
        generator: CPU generator of random growth.

    Returns:
        churn by layer: the share of active kernels that were not active before.
    """
    updates = replace_kernels(fusion_layers(model), Rule(fraction, growth=scores), generator=generator)
    return {name: update.churn for name, update in updates.items()}


@torch.no_grad()
def apply_masks(model: nn.Module) -> None:
    """Zero the inactive weights of every fusion layer in place."""
    for layer in fusion_layers(model).values():
        layer.weight.masked_fill_(~expand_mask(layer.kernel_mask, layer.weight), 0)


def density(model: nn.Module) -> float:
    """Return active kernels / all kernels over the fusion layers (1.0 if there are none)."""
    masks = [layer.kernel_mask for layer in fusion_layers(model).values()]
    total = sum(mask.numel() for mask in masks)
    return sum(int(mask.sum()) for mask in masks) / total if total else 1.0


def flow_shares(model: nn.Module) -> dict[str, float]:
    """Return the share of each flow (forward, up, down) among the active kernels of the fusion nodes; they sum to 1."""
    active = _sum_by_flow(model, lambda part: int(part.sum()))
    total = sum(active.values())
    return {flow: count / total for flow, count in active.items()} if total else {}


def flow_densities(model: nn.Module) -> dict[str, float]:
    """Return active kernels / all kernels within each flow of the fusion nodes."""
    active = _sum_by_flow(model, lambda part: int(part.sum()))
    kernels = _sum_by_flow(model, Tensor.numel)
    return {flow: active[flow] / kernels[flow] for flow in kernels if kernels[flow]}


def _sum_by_flow(model: nn.Module, count: Callable[[Tensor], int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for _, flow, part in iterate_flows(model):
        sums[flow] = sums.get(flow, 0) + count(part)
    return sums


def iterate_flows(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (layer name, flow, the mask's columns of that flow) for fusion layers registered with flows."""
    for name, layer in fusion_layers(model).items():
        flows = layer.flows
        if isinstance(flows, dict):
            yield from zip(
                [name] * len(flows), flows, layer.kernel_mask.split(list(flows.values()), dim=1), strict=True
            )
