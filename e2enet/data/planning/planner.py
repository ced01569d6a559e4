"""Makes a plan from a fingerprint, by nnU-Net's rules or the paper's, with the user's own values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.formats.grid import ANISOTROPY, SPACING_ROUNDING
from e2enet.data.planning.fingerprint import Fingerprint
from e2enet.data.planning.plan import Plan, floats, integers, resampled_shape
from e2enet.data.planning.topology import (
    Strides,
    Triple,
    fit_batch,
    fit_patch,
    pooling_strides,
    round_down,
    round_up,
    tiny_stride,
    total_stride,
)

KINDS = ("auto", "paper")
PAPER_STRIDES: Strides = ((2, 2, 2),) * 5
PAPER_PATCH: Triple = (128, 128, 128)
PAPER_BATCH = 2
DEFAULT_MEMORY_GB = 8.0


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
    """Plan by nnU-Net's rules (`auto`) or with five (2, 2, 2) strides and a 128^3 patch (`paper`).

    Given values are kept, and the rest is fitted to them; None follows the rule. Raises InputError that lists all
    impossible values, or the patch sizes that would fit the strides.
    """
    memory_gb = DEFAULT_MEMORY_GB if memory_gb is None else memory_gb
    _check_overrides(kind, spacing, patch_size, strides, batch_size, memory_gb)
    target = floats(spacing) if spacing is not None else target_spacing(fingerprint)
    shapes = [resampled_shape(case.shape, case.spacing, target) for case in fingerprint.cases]
    median = np.median(shapes, axis=0)
    classes = fingerprint.num_classes
    chosen = tuple(integers(stride) for stride in strides) if strides is not None else None
    if kind == "paper":
        chosen = chosen or PAPER_STRIDES
        patch = integers(patch_size) if patch_size is not None else round_up(PAPER_PATCH, total_stride(chosen))
    elif patch_size is not None:
        patch = integers(patch_size)
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
    median_shape = integers([max(1, round(edge)) for edge in median])
    return Plan(fingerprint.depth_axis, target, patch, chosen, batch_size, schemes, median_shape)


def target_spacing(fingerprint: Fingerprint) -> tuple[float, float, float]:
    """Median spacing in mm; along a far coarser axis with far fewer voxels its 10th percentile.

    The percentile keeps more slices of scans with thin slices. It is never finer than the other axes.
    """
    spacings = np.array([case.spacing for case in fingerprint.cases], dtype=float)
    median = np.median(spacings, axis=0)
    shape = np.median([case.shape for case in fingerprint.cases], axis=0)
    coarse = int(median.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    finer, fewest = median[others].max(), shape[others].min()
    if median[coarse] > ANISOTROPY * (1 + SPACING_ROUNDING) * finer and shape[coarse] * ANISOTROPY < fewest:
        tenth = np.percentile(spacings[:, coarse], 10)
        median[coarse] = tenth if tenth >= finer else finer + 1e-5
    return floats(np.round(median, 6))  # headers store float32: 1.00000003 mm is 1 mm


def _scheme(name: str, fingerprint: Fingerprint, channel: int) -> dict[str, Any]:
    """Choose a channel's normalisation by its name, as in nnU-Net: CT by the dataset, others by each image."""
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
    # If the crop removed more than a quarter, zeros surround the object (skull-stripped heads) and must not count.
    return {"scheme": "zscore", "nonzero": fingerprint.relative_size < 0.75}


def _check_divisible(patch: Triple, strides: Strides) -> None:
    total = total_stride(strides)
    if all(edge % step == 0 for edge, step in zip(patch, total, strict=True)):
        return
    fitting = " or ".join(dict.fromkeys(str(list(nearest(patch, total))) for nearest in (round_down, round_up)))
    raise InputError(
        f"patch_size {list(patch)} is no multiple of the strides' product {list(total)} "
        f"(strides {[list(stride) for stride in strides]}): {fitting} would fit"
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
    """Whether these are three positive numbers of this kind."""
    if not _is_list(values) or len(values) != 3:
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) and value > 0 for value in values)
