"""Granularity of a mask: which kernels are switched together, and in which set their active number stays the same.

DSFF prunes and regrows *units*. What a unit is follows from the layer's attribute `group_size`:

- 1, kernel granularity: every kernel is a unit. The layer keeps its number of active units.
- more, group granularity: that many consecutive output channels form a group and read the same input channels. The last
  group is smaller if the number does not divide the channels. A unit connects a group with one input channel: it has
  one kernel for each of the group's output channels. Every group keeps its number of active units.

Either way a mask is a table of units, (1, kernels) or (groups, input channels), and each row keeps its number of active
units. Pruning and regrowing work on these tables alone. The mask itself is (dim 0, dim 1) of the weight; output
channels are dim 0 of a convolution and dim 1 of a transposed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def chosen_group_size(granularity: str, group_size: int) -> int:
    """Return the `group_size` of layers for the config's `granularity`, "kernel" or "group"."""
    sizes = {"kernel": 1, "group": group_size}
    if granularity not in sizes:
        raise ValueError(f'granularity must be "kernel" or "group", got {granularity!r}')
    return sizes[granularity]


def shared_inputs(layer: Any) -> Tensor | None:
    """Return which input channels each group of a fusion layer reads: int64 (groups, inputs kept), ascending.

    Group i starts at output channel i * `layer.group_size`. Returns None with kernel granularity, and if a mask written
    by hand differs within a group or keeps different numbers in different groups.
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
    """Return the active units of a fusion layer's mask: bool (rows, units).

    Raises:
        ValueError: output channels of a group read different inputs.
    """
    units = _units(layer)
    if units is None:
        raise ValueError(f"a mask is not shared by groups of {layer.group_size} output channels, as it should be")
    return units


def unit_scores(layer: Any, kernels: Tensor) -> Tensor:
    """Return the mean score of every unit's kernels, (rows, units), from scores (dim 0, dim 1).

    Means rather than sums, so that the units of a smaller last group compare with the others.
    """
    if kernels.shape != layer.kernel_mask.shape:
        raise ValueError(f"expected scores of shape {tuple(layer.kernel_mask.shape)}, got {tuple(kernels.shape)}")
    return torch.stack([row.mean(dim=0) for row in _rows(layer, kernels)])


def unit_mask(layer: Any, units: Tensor) -> Tensor:
    """Return the mask (dim 0, dim 1) in which these units are active: the inverse of `active_units`."""
    mask = torch.empty(layer.kernel_mask.shape, dtype=torch.bool, device=units.device)
    for row, active in zip(_rows(layer, mask), units, strict=True):
        row.copy_(active)  # through a view of the mask, to every kernel of the unit
    return mask


def _units(layer: Any) -> Tensor | None:
    rows = _rows(layer, layer.kernel_mask)
    same = all(torch.equal(row, row[:1].expand_as(row)) for row in rows)
    return torch.stack([row[0] for row in rows]) if same else None


def _rows(layer: Any, kernels: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a tensor (dim 0, dim 1), each (kernels of a unit, units): views if it is contiguous."""
    if layer.group_size == 1:
        return (kernels.reshape(1, -1),)
    by_output = kernels.movedim(1 if getattr(layer, "transposed", False) else 0, 0)
    return by_output.split(min(layer.group_size, len(by_output)))


# ---------------------------------------------------------------------------------------------- tables of units


def prune_units(active: Tensor, count: int, scores: Tensor) -> Tensor:
    """Return `active` (rows, units) without the `count` active units of smallest score over all rows.

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
