"""Granularity of a mask: which kernels are switched together, and among which the number of active ones is kept.

DSFF prunes and regrows *units*. What a unit is follows from the layer's attribute `group_size`:

- 1, kernel granularity: every kernel is a unit, and the layer keeps its number of active ones;
- more, group granularity: that many consecutive output channels are a group (the last one is smaller where the number
  does not divide) and read the same input channels. A unit is a group's connection with an input channel, which is one
  kernel for each of its output channels, and every group keeps its number of active ones.

Either way a mask is a table of units whose rows keep their number of active ones: (1, kernels) or (groups, input
channels). Pruning and regrowing know these tables alone. The mask itself is (dim 0, dim 1) of the weight; output
channels are dim 0 of a convolution and dim 1 of a transposed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def chosen_group_size(granularity: str, group_size: int) -> int:
    """Return the `group_size` that layers get by the config's `granularity`, "kernel" or "group"."""
    sizes = {"kernel": 1, "group": group_size}
    if granularity not in sizes:
        raise ValueError(f'granularity must be "kernel" or "group", got {granularity!r}')
    return sizes[granularity]


def shared_inputs(layer: Any) -> Tensor | None:
    """Return which input channels each group of a fusion layer reads: int64 (groups, inputs kept), ascending.

    Group i is the output channels from i * `layer.group_size` on. None where there is no such table: with kernel
    granularity, and where a mask written by hand differs within a group or keeps other numbers in other groups.
    """
    units = _units(layer)
    if layer.group_size == 1 or units is None:
        return None
    kept = units.sum(dim=1)
    if bool((kept != kept[0]).any()):
        return None
    return units.nonzero()[:, 1].reshape(len(units), int(kept[0]))


# ---------------------------------------------------------------------------------------------- kernels to units


def unit_shape(layer: Any) -> tuple[int, int]:
    """Return the shape (rows, units) of a fusion layer's table."""
    rows = _rows(layer, layer.kernel_mask)
    return len(rows), rows[0].shape[1]


def active_units(layer: Any) -> Tensor:
    """Return which units a fusion layer's mask has active: bool (rows, units).

    Raises:
        ValueError: where output channels of a group have different inputs.
    """
    units = _units(layer)
    if units is None:
        raise ValueError(f"a mask is not shared by groups of {layer.group_size} output channels, as it should be")
    return units


def unit_scores(layer: Any, kernels: Tensor) -> Tensor:
    """Return the means over every unit's kernels of scores (dim 0, dim 1): (rows, units).

    Means and not sums, so that the units of a last, smaller group compare with the others.
    """
    if kernels.shape != layer.kernel_mask.shape:
        raise ValueError(f"expected scores of shape {tuple(layer.kernel_mask.shape)}, got {tuple(kernels.shape)}")
    return torch.stack([row.mean(dim=0) for row in _rows(layer, kernels)])


def unit_mask(layer: Any, units: Tensor) -> Tensor:
    """Return the mask (dim 0, dim 1) that has these units active: the opposite of `active_units`."""
    mask = torch.empty(layer.kernel_mask.shape, dtype=torch.bool, device=units.device)
    for row, active in zip(_rows(layer, mask), units, strict=True):
        row.copy_(active)  # through a view of the mask, to every kernel of the unit
    return mask


def _units(layer: Any) -> Tensor | None:
    rows = _rows(layer, layer.kernel_mask)
    same = all(torch.equal(row, row[:1].expand_as(row)) for row in rows)
    return torch.stack([row[0] for row in rows]) if same else None


def _rows(layer: Any, kernels: Tensor) -> tuple[Tensor, ...]:
    """A tensor (dim 0, dim 1) as (kernels of a unit, units) for every row: views of it where it is contiguous."""
    if layer.group_size == 1:
        return (kernels.reshape(1, -1),)
    by_output = kernels.movedim(1 if getattr(layer, "transposed", False) else 0, 0)
    return by_output.split(min(layer.group_size, len(by_output)))


# ---------------------------------------------------------------------------------------------- tables of units


def prune_units(active: Tensor, count: int, scores: Tensor) -> Tensor:
    """Return `active` (rows, units) with `count` fewer in all: without those of smallest score, whatever their row.

    Ties fall to the lower row and index. scores: (rows, units).
    """
    pruned = active.flatten()
    candidates = torch.nonzero(pruned).flatten()
    chosen = candidates[torch.argsort(scores.flatten()[candidates], stable=True)[:count]]
    return pruned.index_fill(0, chosen, False).view_as(active)


def regrow_units(
    active: Tensor, counts: Sequence[int], *, scores: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return `active` (rows, units) with `counts[i]` more in row i: those of largest score, or random ones.

    Random choice is drawn on the CPU from `generator`, row by row, so it does not depend on the device.

    Raises:
        ValueError: if fewer than `counts[i]` units of row i are inactive.
    """
    grown = active.clone()
    for index, (row, count) in enumerate(zip(grown, counts, strict=True)):
        candidates = torch.nonzero(~row).flatten()
        if not 0 <= count <= len(candidates):
            raise ValueError(f"cannot regrow {count}: {len(candidates)} are inactive")
        if scores is None:
            chosen = torch.randperm(len(candidates), generator=generator)[:count].to(active.device)
        else:
            chosen = torch.argsort(scores[index][candidates], descending=True, stable=True)[:count]
        row[candidates[chosen]] = True
    return grown
