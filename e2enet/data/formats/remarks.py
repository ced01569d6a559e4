"""Warnings about the geometry in headers, worded alike for the check, preparation and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.forms import SpacingConflict
from e2enet.data.formats.grid import ANISOTROPY, AXIS_NAMES, SPACING_ROUNDING, Geometry
from e2enet.data.formats.naming import Case
from e2enet.data.formats.problems import Problem, case_warning
from e2enet.data.formats.stored import StoredHeader, read_stored_header

# In mm: finer than any CT of a bone, coarser than any slice. Beyond, the header's unit or spacing is probably wrong.
MIN_SPACING, MAX_SPACING = 0.01, 100.0
FEW = 3  # more cases share one line
NAMED = 5  # cases that a shared line names

Found = tuple[str, Path, float, str]  # case, file, how bad, text


def scan_warnings(cases: Sequence[Case], depth_axis: int | None = None) -> list[Problem]:
    """Return the `header_warnings` of scans. Unreadable headers are skipped, since prediction reports them."""
    headers = []
    for case in cases:
        for path in case.images:
            try:
                headers.append((case.id, read_stored_header(path, case.unit)))
            except InputError:
                continue
    return header_warnings(headers, depth_axis)


def header_warnings(headers: Sequence[tuple[str, StoredHeader]], depth_axis: int | None = None) -> list[Problem]:
    """Warn of voxel sizes that no scanner makes, and of headers whose sform disagrees with pixdim or with the qform.

    `headers` holds (case, header) of every file. Only the first such file of a case is named. Many cases share one
    line. With the frame's `depth_axis` (RAS), warn also of scans whose slices lie across another axis.
    """
    sizes = [_odd_size(case, header) for case, header in headers]
    forms = [_two_forms(case, header) for case, header in headers]
    conflicts = spacing_warnings([(case, header.path, header.conflict) for case, header in headers])
    slices = [] if depth_axis is None else [_other_slices(case, header, depth_axis) for case, header in headers]
    return [*_summed_up(sizes), *conflicts, *_summed_up(forms), *_summed_up(slices)]


def has_other_slices(own: Geometry, depth_axis: int) -> bool:
    """Whether a scan has thick slices across another RAS axis than the frame's; `own` has its own depth axis."""
    return own.depth_axis != depth_axis and _thickness(own) > ANISOTROPY * (1 + SPACING_ROUNDING)


def _thickness(own: Geometry) -> float:
    """Return the spacing across a scan's own slices, as a multiple of the coarser of the other two."""
    return own.spacing[0] / max(own.spacing[1:])


def spacing_warnings(conflicts: Sequence[tuple[str, Path, SpacingConflict | None]]) -> list[Problem]:
    """Warn of headers whose sform and pixdim contradict each other; the input is (case, file, conflict)."""
    return _summed_up([_two_spacings(*one) for one in conflicts])


def _odd_size(case: str, header: StoredHeader) -> Found | None:
    spacing = np.linalg.norm(header.geometry.affine[:3, :3], axis=0)
    if spacing.min() >= MIN_SPACING and spacing.max() <= MAX_SPACING:
        return None
    shown = " x ".join(f"{size:.4g}" for size in spacing)
    text = (
        f"voxels of {shown} mm (its header counts in {header.unit}), {MIN_SPACING:g} to {MAX_SPACING:g} mm "
        "expected: is its header right?"
    )
    return case, header.path, float(max(spacing.max() / MAX_SPACING, MIN_SPACING / spacing.min())), text


def _two_spacings(case: str, path: Path, conflict: SpacingConflict | None) -> Found | None:
    if conflict is None:
        return None
    sform, pixdim = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (conflict.sform, conflict.pixdim))
    text = f"voxels of {sform} mm by the sform and of {pixdim} mm by pixdim; those of pixdim are used, as in ITK"
    return case, path, conflict.factor, text


def _two_forms(case: str, header: StoredHeader) -> Found | None:
    offset = header.forms
    if offset is None or offset.same_grid:
        return None
    apart = f"lead to places up to {offset} apart" if np.isfinite(offset.mm) else "disagree: the qform is no rotation"
    return case, header.path, offset.share, f"sform and qform {apart}; the sform is used"


def _other_slices(case: str, header: StoredHeader, depth_axis: int) -> Found | None:
    own = header.geometry
    if not has_other_slices(own, depth_axis):
        return None
    text = (
        f"slices of {own.spacing[0]:.4g} mm across the {AXIS_NAMES[own.depth_axis]} axis, those of the training data "
        f"lie across the {AXIS_NAMES[depth_axis]} axis: this scan is resampled within its slices, expect poor results"
    )
    return case, header.path, _thickness(own), text


def _summed_up(found: Sequence[Found | None]) -> list[Problem]:
    """Return one warning per case for a few cases, or one that names the worst of many."""
    by_case: dict[str, Found] = {}
    for one in found:
        if one is not None:
            by_case.setdefault(one[0], one)
    if len(by_case) <= FEW:
        return [case_warning(case, text, path) for case, path, _, text in by_case.values()]
    _, path, _, text = max(by_case.values(), key=lambda one: one[2])
    named = ", ".join(list(by_case)[:NAMED]) + " .." * (len(by_case) > NAMED)
    return [Problem(None, "warning", f"{text} (the largest of {len(by_case)} cases: {named})", str(path))]
