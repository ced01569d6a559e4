"""The plan: depth axis, spacing, patch, strides, batch size and normalisation that follow from a dataset's
fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import read_json, write_json
from e2enet.data.formats.layout import RawDataset
from e2enet.data.planning.fingerprint import Fingerprint, cached_fingerprint
from e2enet.data.planning.topology import (
    Strides,
    Triple,
    fit_batch,
    fit_patch,
    pooling_strides,
    round_up,
    tiny_stride,
    total_stride,
)

ANISOTROPY = 3.0  # nnU-Net's threshold: spacing or shape that differ by more are treated apart
KINDS = ("auto", "paper")
PAPER_STRIDES: Strides = ((2, 2, 2),) * 5
PAPER_PATCH: Triple = (128, 128, 128)
PAPER_BATCH = 2
DEFAULT_MEMORY_GB = 8.0


@dataclass(frozen=True)
class Plan:
    """How a dataset is prepared and cut; all triples in the frame (D, H, W).

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
    def from_dict(cls, content: Mapping[str, Any]) -> Plan:
        """Inverse of to_dict; InputError naming keys that are missing or unknown."""
        names = set(cls.__dataclass_fields__)
        if set(content) != names:
            raise InputError(
                f"plan: missing {sorted(names - set(content))}, unknown {sorted(set(content) - names)}, "
                f"exactly {sorted(names)} expected"
            )
        return cls(
            int(content["depth_axis"]),
            _floats(content["spacing"]),
            _integers(content["patch_size"]),
            tuple(_integers(stride) for stride in content["strides"]),
            int(content["batch_size"]),
            tuple(dict(channel) for channel in content["normalisation"]),
            _integers(content["median_shape"]),
        )


def make_plan(
    fingerprint: Fingerprint,
    channels: Sequence[str],
    *,
    kind: str = "auto",
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    memory_gb: float | None = None,
) -> Plan:
    """Plan by nnU-Net's rules (`auto`) or with five (2, 2, 2) strides and a 128^3 patch (`paper`); None
    follows the rule.

    Every given value holds as it is; the rest is fitted to it. Raises InputError listing all values that are
    impossible, with the patch sizes that would fit the strides.
    """
    memory_gb = DEFAULT_MEMORY_GB if memory_gb is None else memory_gb
    _check_overrides(kind, spacing, patch_size, strides, batch_size, memory_gb)
    target = _floats(spacing) if spacing is not None else target_spacing(fingerprint)
    shapes = [resampled_shape(case.shape, case.spacing, target) for case in fingerprint.cases]
    median = np.median(shapes, axis=0)
    classes = fingerprint.num_classes
    chosen = tuple(_integers(stride) for stride in strides) if strides is not None else None
    if kind == "paper":
        chosen = chosen or PAPER_STRIDES
        patch = _integers(patch_size) if patch_size is not None else round_up(PAPER_PATCH, total_stride(chosen))
    elif patch_size is not None:
        patch = _integers(patch_size)
        chosen = chosen or pooling_strides(target, patch) or (tiny_stride(target, patch),)
    else:
        patch, fitted = fit_patch(target, median.tolist(), classes, memory_gb)
        chosen = chosen or fitted or (tiny_stride(target, patch),)
        patch = round_up(patch, total_stride(chosen))
    _check_divisible(patch, chosen)
    if batch_size is None:
        voxels = float(median.prod()) * len(fingerprint.cases)
        batch_size = PAPER_BATCH if kind == "paper" else fit_batch(patch, chosen, classes, memory_gb, voxels)
    schemes = tuple(_scheme(name, fingerprint, index) for index, name in enumerate(channels))
    median_shape = _integers([max(1, round(edge)) for edge in median])
    return Plan(fingerprint.depth_axis, target, patch, chosen, batch_size, schemes, median_shape)


def plan_dataset(
    dataset: RawDataset,
    folder: str | Path,
    *,
    kind: str = "auto",
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    memory_gb: float | None = None,
) -> Plan:
    """Plan for all training cases of a dataset; see make_plan for the values, None follows the rule.

    Writes `fingerprint.json` to the prepared folder, once for the same raw files, labels and channels (the
    scans are read only then), and `plan.json`, the last plan made, for people to read.
    """
    folder = Path(folder)
    fingerprint = cached_fingerprint(dataset, folder / "fingerprint.json")
    plan = make_plan(
        fingerprint,
        dataset.channels,
        kind=kind,
        spacing=spacing,
        patch_size=patch_size,
        strides=strides,
        batch_size=batch_size,
        memory_gb=memory_gb,
    )
    target = folder / "plan.json"
    if not target.is_file() or read_json(target) != plan.to_dict():
        write_json(target, plan.to_dict())
    return plan


def target_spacing(fingerprint: Fingerprint) -> tuple[float, float, float]:
    """Median spacing in mm; along a far coarser axis with far fewer voxels its 10th percentile.

    The latter keeps scans with thinner slices from being thinned out; it never gets finer than the other
    axes.
    """
    spacings = np.array([case.spacing for case in fingerprint.cases], dtype=float)
    median = np.median(spacings, axis=0)
    shape = np.median([case.shape for case in fingerprint.cases], axis=0)
    coarse = int(median.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    finer, fewest = median[others].max(), shape[others].min()
    if median[coarse] > ANISOTROPY * finer and shape[coarse] * ANISOTROPY < fewest:
        tenth = np.percentile(spacings[:, coarse], 10)
        median[coarse] = tenth if tenth >= finer else finer + 1e-5
    return _floats(median)


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Triple:
    """Voxels of a volume at the target spacing: 30 slices of 3 mm are 18 of 5 mm. At least 1 along each
    axis."""
    edges = zip(shape, spacing, target, strict=True)
    return _integers([max(1, round(old / new * voxels)) for voxels, old, new in edges])


def _scheme(name: str, fingerprint: Fingerprint, channel: int) -> dict[str, Any]:
    """By the channel's name as in nnU-Net: CT has one scale for all images, other images each their own."""
    if name.casefold() == "ct":
        found = fingerprint.intensities[channel]
        return {
            "scheme": "ct",
            "lower": found["percentile_00_5"],
            "upper": found["percentile_99_5"],
            "mean": found["mean"],
            "std": found["std"],
        }
    if name.casefold() == "nonorm":
        return {"scheme": "none"}
    # Where the crop removed a quarter or more, zeros surround the object (skull-stripped heads): they must
    # not count.
    return {"scheme": "zscore", "nonzero": fingerprint.relative_size < 0.75}


def _check_divisible(patch: Triple, strides: Strides) -> None:
    total = total_stride(strides)
    if all(edge % step == 0 for edge, step in zip(patch, total, strict=True)):
        return
    lower = [max(edge // step, 1) * step for edge, step in zip(patch, total, strict=True)]
    raise InputError(
        f"patch_size {list(patch)} is no multiple of the strides' product {list(total)} "
        f"(strides {[list(stride) for stride in strides]}): "
        f"{lower} or {list(round_up(patch, total))} would fit"
    )


def _check_overrides(
    kind: str,
    spacing: Sequence[float] | None,
    patch_size: Sequence[int] | None,
    strides: Sequence[Sequence[int]] | None,
    batch_size: int | None,
    memory_gb: float,
) -> None:
    problems = []
    if kind not in KINDS:
        problems.append(f"kind is {kind!r}: one of {', '.join(KINDS)} expected")
    if spacing is not None and not _are(spacing, (int, float)):
        problems.append(f"spacing is {spacing!r}: three positive numbers in mm (D, H, W) expected")
    if patch_size is not None and not _are(patch_size, int):
        problems.append(f"patch_size is {patch_size!r}: three positive integers (D, H, W) expected")
    if strides is not None and not (_is_list(strides) and len(strides) >= 1 and all(_are(s, int) for s in strides)):
        problems.append(f"strides is {strides!r}: at least one triple of positive integers (D, H, W) expected")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        problems.append(f"batch_size is {batch_size!r}: a positive integer expected")
    if isinstance(memory_gb, bool) or not isinstance(memory_gb, (int, float)) or not memory_gb > 0:
        problems.append(f"memory_gb is {memory_gb!r}: a positive number expected")
    raise_problems(problems, "plan: impossible values")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _are(values: Any, kind: Any) -> bool:
    """Three positive numbers of this kind."""
    if not _is_list(values) or len(values) != 3:
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) and value > 0 for value in values)


def _floats(values: Sequence[Any] | np.ndarray) -> tuple[float, float, float]:
    depth, height, width = (float(value) for value in values)
    return depth, height, width


def _integers(values: Sequence[Any]) -> Triple:
    depth, height, width = (int(value) for value in values)
    return depth, height, width
