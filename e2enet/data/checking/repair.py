"""Corrected copies of label files whose affine differs from their image's. Originals are never changed."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path, require_new_folder
from e2enet.data.checking.case import CaseFacts
from e2enet.data.formats.grid import same_directions
from e2enet.data.formats.itk import write_itk
from e2enet.data.formats.listing import ITK_ENDINGS
from e2enet.data.formats.nifti import without_history
from e2enet.data.formats.opening import open_image

# Fields of a NIfTI header that place the voxels, besides pixdim (voxel sizes and the handedness of the qform).
GEOMETRY_FIELDS = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)
LENGTH_BITS = 7
NO_EXTENSION = bytes(4)  # follows a header without extensions


@dataclass(frozen=True)
class Repair:
    """The result for one label: the corrected copy, or the reason why there is none."""

    case: str
    label: Path
    copy: Path | None
    reason: str = ""


def require_repair_folder(target: Path, dataset: Path) -> None:
    """Raise InputError unless `target` is a new or empty folder outside of the dataset."""
    if target.resolve().is_relative_to(dataset.resolve()) or dataset.resolve().is_relative_to(target.resolve()):
        raise InputError(f"repair={target}: a folder apart from the dataset ({dataset}) expected")
    require_new_folder(target, f"repair={target}")


def repair_labels(facts: Iterable[CaseFacts], dataset: Path, target: Path) -> list[Repair]:
    """Copy each label that is off its image's grid to `target`, with the image's affine and the same voxel bytes.

    A copy has the same relative path in `target` as its original in the dataset's folder. A label is not copied if
    the shapes differ, or if the two affines order or direct the axes differently. In the second case the voxels may
    be stored in another order, which only looking at both can tell.
    """
    repairs = []
    for case in facts:
        label = case.case.label
        if label is None or case.label_geometry is None:
            continue
        reason = _why_not(case)
        copy = None if reason else target / _relative(label, dataset)
        if copy is not None:
            _write_copy(label, case.case.images[0], copy)
        repairs.append(Repair(case.case.id, label, copy, reason))
    return repairs


def _why_not(case: CaseFacts) -> str:
    label = case.label_geometry
    assert label is not None
    if label.shape != case.geometry.shape:
        return f"its shape {label.shape} is not the image's {case.geometry.shape}"
    if not same_directions(case.geometry, label):
        orientation = "".join(nib.aff2axcodes(label.affine))
        return f"its axes ({orientation}) do not point as the image's ({case.orientation}) do: look at both"
    return ""


def _relative(label: Path, dataset: Path) -> Path:
    """Return the label's path in the dataset, or its name alone if it is elsewhere (nnU-Net's `dataset` section)."""
    return label.relative_to(dataset) if label.is_relative_to(dataset) else Path(label.name)


def _write_copy(label: Path, image: Path, copy: Path) -> None:
    """Write the label's voxels, byte for byte, with the image's geometry.

    Extensions and texts of the header are left out (`without_history`). Other formats than NIfTI keep the values.
    """
    if label.name.endswith(ITK_ENDINGS):
        write_itk(copy, open_image(label).read_unscaled(), open_image(image).affine)
        return
    with (
        atomic_path(copy) as temporary,
        _opener(label)(label, "rb") as source,
        _opener(copy)(temporary, "wb") as stream,
    ):
        header, reference = without_history(_stored_fields(label)), _stored_fields(image)
        for field in GEOMETRY_FIELDS:
            header[field] = reference[field]
        header["pixdim"][:4] = reference["pixdim"][:4]
        # The low bits are the unit of length, taken from the image as its numbers are. The others are that of time.
        header["xyzt_units"] = (int(header["xyzt_units"]) & ~LENGTH_BITS) | (int(reference["xyzt_units"]) & LENGTH_BITS)
        header["vox_offset"] = len(header.binaryblock) + len(NO_EXTENSION)
        stream.write(header.binaryblock + NO_EXTENSION)
        stored: Any = nib.load(label)
        source.seek(stored.dataobj.offset)
        while piece := source.read(2**20):
            stream.write(piece)


def _stored_fields(path: Path) -> Any:
    """Return the header as stored in the file: a loaded image's header has lost offset and scaling.

    For other formats, return a NIfTI header with the same geometry.
    """
    if path.name.endswith(ITK_ENDINGS):
        header: Any = nib.Nifti1Header()
        header.set_data_shape(open_image(path).shape[:3])
        for set_form in (header.set_qform, header.set_sform):
            set_form(open_image(path).affine, 1)
        header.set_xyzt_units("mm")
        return header
    header = nib.load(path).header
    with _opener(path)(path, "rb") as stream:
        return type(header)(stream.read(len(header.binaryblock)), check=False)


def _opener(path: Path) -> Any:
    return gzip.open if path.name.endswith(".gz") else open
