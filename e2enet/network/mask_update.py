"""One update of masks: which kernels of which layers are pruned, which are regrown, and what their weights are then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from e2enet.network.granularity import active_units, prune_units, regrow_units, unit_mask, unit_scores
from e2enet.network.kernels import Generator, expand_mask, kernel_scores, prune_count


@dataclass(frozen=True)
class LayerUpdate:
    """What an update did to a layer.

    Attributes:
        grown: bool (dim 0, dim 1), the kernels that were regrown, those that had just been pruned too.
        churn: the share of the kernels active before that were not, and are now.
    """

    grown: Tensor
    churn: float


@dataclass(frozen=True)
class Rule:
    """How kernels are chosen.

    Attributes:
        fraction: share of the active kernels to replace.
        counts: layer name -> active kernels after the update, if they are fewer than before; None: as many.
        pruning: layer name -> scores (dim 0, dim 1), the smallest are pruned; None: L1 norms of the weights.
        growth: layer name -> scores (dim 0, dim 1), the largest grow; None: at random.
        across: compare the kernels of all layers, so that a layer's count may change and only the sum is kept. Scores
            are divided by the weights of a kernel. Every layer keeps its best kernel.
    """

    fraction: float
    counts: Mapping[str, int] | None = None
    pruning: Mapping[str, Tensor] | None = None
    growth: Mapping[str, Tensor] | None = None
    across: bool = False


def replace_kernels(
    layers: Mapping[str, Any], rule: Rule, *, drawn: bool = False, generator: Generator = None
) -> dict[str, LayerUpdate]:
    """Prune and regrow kernels of fusion layers by a rule; change masks and weights in place.

    Args:
        layers: fusion layers by name.
        rule: which kernels are replaced.
        drawn: regrown weights are drawn from a normal distribution as wide as the layer's active weights; False: zero.
        generator: CPU generator of random growth and of weights.

    Raises:
        ValueError: counts or `across` for layers whose masks have groups, whose counts are all alike.
    """
    updates: dict[str, LayerUpdate] = {}
    for names in [list(layers)] if rule.across else [[name] for name in layers]:
        some = {name: layers[name] for name in names}
        units = [active_units(layer) for layer in some.values()]
        _refuse_groups(some, units, rule)
        kept, grown = _choose(some, torch.cat(units, dim=1), rule, generator)
        widths = [table.shape[1] for table in units]
        for (name, layer), old, new in zip(some.items(), kept.split(widths, 1), grown.split(widths, 1), strict=True):
            updates[name] = _apply(layer, unit_mask(layer, old), unit_mask(layer, new), drawn, generator)
    return updates


def _choose(layers: Mapping[str, Any], active: Tensor, rule: Rule, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return which units (rows, units) of the layers, side by side, are kept, and which are active afterwards."""
    before = int(active.sum())
    after = before if rule.counts is None else min(before, sum(rule.counts[name] for name in layers))
    count, excess = prune_count(after, rule.fraction), before - after
    norms = {name: kernel_scores(layer.weight.detach()) for name, layer in layers.items()}
    scores = _table(layers, rule.pruning or norms, rule.across)
    if rule.across:
        count = min(count, after - len(layers))
        scores = _spare_the_best(scores, active, [layer.kernel_mask.numel() for layer in layers.values()])
    kept = prune_units(active, count + excess, scores)
    lost = active.sum(dim=1) - kept.sum(dim=1) - excess
    growth = None if rule.growth is None else _table(layers, rule.growth, rule.across)
    return kept, regrow_units(kept, lost.tolist(), scores=growth, generator=generator)


def _table(layers: Mapping[str, Any], scores: Mapping[str, Tensor], across: bool) -> Tensor:
    """Return the units' scores of the layers, side by side; if they are compared, by a weight of the kernel."""
    weights = {name: prod(layer.weight.shape[2:]) if across else 1 for name, layer in layers.items()}
    return torch.cat([unit_scores(layer, scores[name]) / weights[name] for name, layer in layers.items()], dim=1)


def _spare_the_best(scores: Tensor, active: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the scores (1, kernels) with infinity for the best active kernel of each layer."""
    spared = scores.clone()
    for part, alive in zip(spared[0].split(list(sizes)), active[0].split(list(sizes)), strict=True):
        part[torch.where(alive, part, -1).argmax()] = torch.inf  # through a view
    return spared


def _apply(layer: Any, kept: Tensor, after: Tensor, drawn: bool, generator: Generator) -> LayerUpdate:
    mask, weight = layer.kernel_mask, layer.weight.detach()
    before, grown = mask.clone(), after & ~kept
    # Only kernels that stayed active throughout keep their weights.
    weight.masked_fill_(~expand_mask(kept, weight), 0)
    if drawn:
        number = int(grown.sum())
        width = weight[kept].square().mean().sqrt().nan_to_num(nan=0.0)
        values = torch.randn(number, *weight.shape[2:], generator=generator)
        weight[grown] = values.to(weight) * width
    mask.copy_(after)
    return LayerUpdate(grown, int((after & ~before).sum()) / int(before.sum()))


def _refuse_groups(layers: Mapping[str, Any], units: Sequence[Tensor], rule: Rule) -> None:
    if (rule.across or rule.counts is not None) and any(layer.group_size > 1 for layer in layers.values()):
        raise ValueError(
            "groups of output channels read equally many inputs: expected the counts of masks that change, or updates "
            "over the whole network, with single kernels only"
        )


def seeded_generator(seed: int, index: int) -> torch.Generator:
    """Return the CPU generator of mask drawing number `index`; 0 is the start."""
    # Seeds that differ by one give independent streams in the Mersenne twister; the factor keeps (seed,
    # index) pairs apart for any index below a million.
    return torch.Generator().manual_seed(seed * 1_000_003 + index)
