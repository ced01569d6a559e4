"""Problems that only show when cases are compared: duplicates, outliers, labels without a voxel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from e2enet.data.checking.case import CaseFacts
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.grid import SAME_GRID, Geometry, choose_depth_axis
from e2enet.data.formats.labels import are_consecutive
from e2enet.data.formats.problems import Problem, case_warning, dataset_error
from e2enet.data.formats.remarks import has_other_slices, header_warnings

# A voxel size that differs from the median by more than this factor suggests a wrong header, not another scanner.
SPACING_FACTOR = 3.0
# If more than this fraction of cases differs from the most frequent kind, the dataset is mixed: no case is odd.
MAX_ODD_ONES = 0.25


def compare_cases(dataset: RawDataset, facts: Sequence[CaseFacts]) -> list[Problem]:
    """Return the problems of the dataset as a whole, and of cases that differ from the others."""
    if not facts:
        return []
    depth_axis = frame_depth_axis(facts)
    return [
        *_duplicates(facts),
        *_odd_orientations(facts),
        *_odd_spacings([case for case in facts if not has_other_slices(case.geometry, depth_axis)], depth_axis),
        *_single_slices(facts, depth_axis),
        *_missing_labels(dataset, facts),
        *_small_offsets(facts),
        *header_warnings([(case.case.id, header) for case in facts for header in case.headers], depth_axis),
    ]


def frame_depth_axis(facts: Sequence[CaseFacts]) -> int:
    """Return the RAS axis that training uses as depth, chosen from the training cases as the fingerprint does."""
    chosen = [case for case in facts if case.part == "training"] or list(facts)
    # With depth axis 0 the frame's order is RAS.
    return choose_depth_axis([in_frame(case, 0).spacing for case in chosen])


def in_frame(case: CaseFacts, depth_axis: int) -> Geometry:
    """Return the case's geometry with its `frame_shape` and `spacing` depth first."""
    return replace(case.geometry, depth_axis=depth_axis)


def _duplicates(facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    """Report the same values under several ids: a network could be validated on its training data."""
    alike: dict[bytes, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        if case.digest is not None:
            alike[case.digest].append(case)
    for first, *others in alike.values():
        ids = tuple(case.case.id for case in (first, *others))
        for number, other in enumerate(others, 1):
            both_test = first.part == other.part == "test"
            text = f"the same image, voxel for voxel, as case {first.case.id} ({first.part}): {first.case.images[0]}"
            file = str(other.case.images[0])
            yield Problem(other.case.id, "warning" if both_test else "error", text, file, ids[:number])


def _odd_orientations(facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    counts = Counter(case.orientation for case in facts)
    usual, count = counts.most_common(1)[0]
    if len(facts) - count > MAX_ODD_ONES * len(facts):
        found = ", ".join(f"{name} {number}" for name, number in counts.most_common())
        yield Problem(None, "warning", f"cases are stored in several orientations: {found}")
        return
    for case in facts:
        if case.orientation != usual:
            text = f"stored in orientation {case.orientation}, {count} of {len(facts)} cases in {usual}"
            yield case_warning(case.case.id, text, case.case.images[0])


def _odd_spacings(facts: Sequence[CaseFacts], depth_axis: int) -> Iterator[Problem]:
    if not facts:
        return
    spacings = np.array([in_frame(case, depth_axis).spacing for case in facts])
    median = np.median(spacings, axis=0)
    odd = (np.maximum(spacings / median, median / spacings) > SPACING_FACTOR).any(axis=1)
    if odd.sum() > MAX_ODD_ONES * len(facts):
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        text = f"voxel sizes are mixed: from {in_mm(low)} to {in_mm(high)}, the median is {in_mm(median)} (depth first)"
        yield Problem(None, "warning", text)
        return
    for case, spacing in ((facts[index], spacings[index]) for index in np.flatnonzero(odd).tolist()):
        text = f"voxels of {in_mm(spacing)}, the median is {in_mm(median)} (depth first): is its header right?"
        yield case_warning(case.case.id, text, case.case.images[0])


def _single_slices(facts: Sequence[CaseFacts], depth_axis: int) -> Iterator[Problem]:
    for case in facts:
        shape = in_frame(case, depth_axis).frame_shape
        if min(shape) == 1:
            text = f"an image of {' x '.join(map(str, shape))} voxels (depth first): a single slice"
            yield case_warning(case.case.id, text, case.case.images[0])


def _missing_labels(dataset: RawDataset, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    counted = [case.voxels for case in facts if case.part == "training" and case.voxels is not None]
    if len(counted) < len(dataset.training) or len(dataset.labels) < 2 or not are_consecutive(dataset.labels):
        return  # an unreadable case may hold the labels, or the labels themselves could not be read
    present = {value for voxels in counted for value in voxels}
    absent = [value for value in sorted(dataset.labels) if value > 0 and value not in present]
    if not present & set(dataset.labels) - {0}:
        yield dataset_error("no training case has any labelled voxel, foreground expected", dataset.folder)
    elif absent:
        found = ", ".join(f"{value} ({dataset.scheme.file_names[value]})" for value in absent)
        yield Problem(None, "warning", f"no training case has a voxel of label {found}", str(dataset.folder))


def _small_offsets(facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    """Give one warning for all labels and channels that are off by more than rounding, yet on their image's grid."""
    offsets = [(case.offset, case) for case in facts if case.offset is not None and case.offset.worth_telling]
    if offsets:
        largest, case = max(offsets, key=lambda one: one[0])
        text = (
            f"in {len(offsets)} of {len(facts)} cases a label or channel lies beside its image's grid, by up to "
            f"{largest} in case {case.case.id}: taken for the same grid, as all up to {SAME_GRID:g} are"
        )
        yield Problem(None, "warning", text)


def in_mm(spacing: Sequence[float] | np.ndarray) -> str:
    """Return three sizes as text: `3 x 0.8 x 0.8 mm`."""
    return f"{' x '.join(f'{size:.3g}' for size in spacing)} mm"
