"""The plan: depth axis, spacing, patch, strides, batch size and normalisation of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2enet.common.errors import raise_problems
from e2enet.data.planning.plan_check import plan_problems
from e2enet.data.planning.topology import Strides, Triple


@dataclass(frozen=True)
class Plan:
    """How a dataset is prepared and cut into patches; all triples are in the frame (D, H, W).

    Attributes:
        depth_axis: the RAS axis (0, 1, 2) that is D.
        spacing: mm per voxel after resampling.
        patch_size: voxels, a multiple of the strides' product.
        strides: L - 1 triples between the L levels.
        normalisation: per channel {"scheme": "ct", "lower", "upper", "mean", "std"},
            {"scheme": "zscore", "nonzero": bool} or {"scheme": "none"}.
        median_shape: voxels of the median case at this spacing.
    """

    depth_axis: int
    spacing: tuple[float, float, float]
    patch_size: Triple
    strides: Strides
    batch_size: int
    normalisation: tuple[dict[str, Any], ...]
    median_shape: Triple

    @property
    def masked_channels(self) -> tuple[int, ...]:
        """Channels that are normalised by their voxels inside the nonzero mask and are 0 outside of it."""
        return tuple(channel for channel, scheme in enumerate(self.normalisation) if scheme.get("nonzero"))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers, fit for JSON and for a checkpoint that loads with weights_only."""
        return {
            "depth_axis": self.depth_axis,
            "spacing": list(self.spacing),
            "patch_size": list(self.patch_size),
            "strides": [list(stride) for stride in self.strides],
            "batch_size": self.batch_size,
            "normalisation": [dict(channel) for channel in self.normalisation],
            "median_shape": list(self.median_shape),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "plan") -> Plan:
        """Inverse of to_dict. One InputError, headed by `source`, lists missing or unknown keys and wrong values."""
        raise_problems(plan_problems(content), f"{source}: is no plan")
        return cls(
            int(content["depth_axis"]),
            floats(content["spacing"]),
            integers(content["patch_size"]),
            tuple(integers(stride) for stride in content["strides"]),
            int(content["batch_size"]),
            tuple(dict(channel) for channel in content["normalisation"]),
            integers(content["median_shape"]),
        )


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Triple:
    """Voxels of a volume at the target spacing, at least 1 along each axis: 30 slices of 3 mm are 18 of 5 mm.

    Rounding of headers decides nothing: 5 voxels of 1.50000002 mm are 7.5 of 1 mm, and half rounds to even.
    """
    edges = zip(shape, spacing, target, strict=True)
    return integers([max(1, round(round(old / new * voxels, 4))) for voxels, old, new in edges])


def floats(values: Sequence[Any]) -> tuple[float, float, float]:
    """Three numbers as a tuple."""
    depth, height, width = (float(value) for value in values)
    return depth, height, width


def integers(values: Sequence[Any]) -> Triple:
    """Three whole numbers as a tuple."""
    depth, height, width = (int(value) for value in values)
    return depth, height, width
