"""What the viewer stores of one case: its scripts for the page, and its line in the list of cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path
from e2enet.data.formats.grid import Geometry, grid_problem
from e2enet.data.formats.naming import Case
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import read_geometry, read_label_on, read_volume
from e2enet.view import volumes
from e2enet.view.agreement import Agreement, compare_labels
from e2enet.view.meaning import Meaning
from e2enet.view.volumes import Box, Scan


@dataclass(frozen=True)
class Pane:
    """One prediction of a case: the name of what made it, its label image, and its .npz of probabilities if kept."""

    name: str
    prediction: Path
    probabilities: Path | None = None


@dataclass(frozen=True)
class Entry:
    """A line of the viewer's list: a case (with its reference if `case.label` is set) and one or two predictions.

    `note` says why it is shown, such as "worst of 40".
    """

    case: Case
    panes: tuple[Pane, ...]
    meaning: Meaning
    note: str = ""


def grid_problems(entry: Entry) -> list[str]:
    """List the label images of a case that are unreadable or not on the scan's grid, from the headers alone."""
    unit, label = entry.case.unit, entry.case.label
    files = [(label, unit)] * (label is not None) + [(pane.prediction, None) for pane in entry.panes]
    problems = []
    try:
        grid = read_geometry(entry.case.images[0], unit=unit)
        for path, own in files:
            assert path is not None
            problem = grid_problem(grid, read_geometry(path, unit=own), ("scan", "labels"))
            problems += [f"{path}: not on the grid of {entry.case.images[0]}: {problem}"] if problem else []
    except InputError as error:
        problems.append(str(error))
    return problems


def write_case(folder: Path, number: int, entry: Entry, *, whole: bool = False) -> dict[str, Any]:
    """Write the scripts of a case into `folder`, named by its number; return its line in the list of cases.

    `whole` keeps large scans as they are.

    Raises:
        InputError: names the file. It cannot be read, or lies on another grid than the scan.
    """
    volume = read_volume(entry.case.images, unit=entry.case.unit)
    geometry, meaning = volume.geometry, entry.meaning
    channels = [volumes.to_ras(channel, geometry) for channel in volume.array]
    reference = None
    if entry.case.label is not None:
        label = read_label_on(geometry, entry.case.label, meaning.label_map, entry.case.unit)
        reference = volumes.to_ras(label, geometry)
    maps = [volumes.to_ras(read_label_on(geometry, pane.prediction), geometry) for pane in entry.panes]
    agreements = [
        None if reference is None else compare_labels(labels, reference, meaning.scheme, meaning.regions)
        for labels in maps
    ]
    is_large = not whole and any(map(volumes.is_large, channels))
    labelled = maps if reference is None else [*maps, reference]
    box = volumes.whole_box(geometry)
    if is_large:
        box = volumes.box_around([meaning.scheme.foreground(labels) for labels in labelled], geometry, volumes.MARGIN)
    part = _Part(geometry, box)
    scans = [(volumes.rounded_scan if is_large else volumes.exact_scan)(channel[box]) for channel in channels]
    content = _content(part, scans, meaning, maps, reference, agreements)
    inside = np.any([meaning.scheme.foreground(labels[box]) for labels in labelled], axis=0)
    for stored, channel in zip(content["channels"], channels, strict=True):
        stored["label_window"] = volumes.label_window(channel[box], inside)
    num_bytes = 0
    for index, pane in enumerate(entry.panes):
        if pane.probabilities is not None:
            encoded = _encode_probabilities(pane.probabilities, part, meaning.scheme)
            content["probabilities"] = [channel["name"] for channel in encoded]
            num_bytes += _write_script(folder / f"{number}-{index}.js", f"probabilities({number}, {index}, ", encoded)
    num_bytes += _write_script(folder / f"{number}.js", f"case({number}, ", content)
    return {
        "case": entry.case.id,
        "note": entry.note,
        "shape": list(scans[0].array.shape),
        "whole_shape": list(volumes.ras_shape(geometry)),
        "exact": not is_large,
        "bytes": num_bytes,
        "reference": reference is not None,
        "panes": [_pane_line(pane, agreement) for pane, agreement in zip(entry.panes, agreements, strict=True)],
    }


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a scan's grid that is stored."""

    geometry: Geometry
    box: Box

    def encode(self, labels: np.ndarray) -> str:
        """Return the part of a map (x, y, z) as `encode_nifti`: uint8, or int16 for labels above 255."""
        part = labels[self.box]
        kind = np.uint8 if part.max(initial=0) <= 255 else np.int16
        return volumes.encode_nifti(part.astype(kind), self.affine)

    @property
    def affine(self) -> np.ndarray:
        """Voxel of the part -> mm."""
        return volumes.ras_affine(self.geometry, self.box)

    def file_axes(self) -> list[dict[str, Any]]:
        """Return for each axis of the file how its index follows from one of the part: index = start + sign * i."""
        axes = []
        for (axis, direction), size in zip(self.geometry.orientation.astype(int), self.geometry.shape, strict=True):
            start = self.box[axis].start
            axes.append(
                {
                    "axis": int(axis),
                    "sign": int(direction),
                    "start": int(start if direction > 0 else size - 1 - start),
                }
            )
        return axes


def script(call: str, content: Any) -> str:
    """Return a line of JavaScript that hands plain containers to the page.

    JSON in ASCII is JavaScript too: every other character is escaped, so that no text from outside can end a string.
    """
    return f"e2enet.{call}{json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(',', ':'))});\n"


def _write_script(path: Path, call: str, content: Any) -> int:
    text = script(call, content)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="ascii")
    return len(text)


def _encode_probabilities(source: Path, part: _Part, scheme: LabelScheme) -> list[dict[str, str]]:
    """Return name and probabilities of each class or region, without background.

    A class that has no name, since no dataset.json names it, is called by its label.
    """
    channels = enumerate(volumes.read_probabilities(source, part.geometry), start=1 if scheme.regions else 0)
    return [
        {
            "name": scheme.class_names.get(label, str(label)),
            "data": volumes.encode_nifti(channel[part.box], part.affine, 1 / 255),
        }
        for label, channel in channels
        if label != 0
    ]


def _content(
    part: _Part,
    scans: Sequence[Scan],
    meaning: Meaning,
    maps: Sequence[np.ndarray],
    reference: np.ndarray | None,
    agreements: Sequence[Agreement | None],
) -> dict[str, Any]:
    """Return what the page loads when the case is clicked, in plain containers."""
    names = list(meaning.channels)
    if len(names) != len(scans):
        names = ["scan"] if len(scans) == 1 else [f"channel {index}" for index in range(len(scans))]
    inside = [labels[part.box] for labels in (maps if reference is None else [*maps, reference])]
    differences = [one.difference[part.box] for one in agreements if one is not None]
    return {
        "channels": [_channel(name, scan, part) for name, scan in zip(names, scans, strict=True)],
        "reference": None if reference is None else part.encode(reference),
        "panes": [
            {
                "prediction": part.encode(labels),
                "difference": None if agreement is None else part.encode(agreement.difference),
            }
            for labels, agreement in zip(maps, agreements, strict=True)
        ],
        "focus": _focus(inside[: len(maps)], differences, meaning.scheme),
        "file": part.file_axes(),
        "values": sorted({int(value) for labels in inside for value in np.unique(labels)} - {0}),
        "probabilities": list(meaning.scheme.class_names.values())[1:],
    }


def _channel(name: str, scan: Scan, part: _Part) -> dict[str, Any]:
    data = volumes.encode_nifti(scan.array, part.affine, scan.slope, scan.intercept)
    return {"name": name, "data": data, "window": list(scan.window)}


def _pane_line(pane: Pane, agreement: Agreement | None) -> dict[str, Any]:
    return {
        "name": pane.name,
        "mean": None if agreement is None else agreement.mean,
        "dice": {} if agreement is None else agreement.dice,
        "probabilities": pane.probabilities is not None,
    }


def _focus(maps: Sequence[np.ndarray], differences: Sequence[np.ndarray], scheme: LabelScheme) -> list[int]:
    """Return the voxel where the page opens: in each axis the slice with most wrong voxels, else most labelled ones."""
    focus = []
    for axis, size in enumerate(maps[0].shape):
        others = tuple(other for other in range(3) if other != axis)
        wrong = sum((one != 0).sum(axis=others) for one in differences)
        filled = sum(scheme.foreground(labels).sum(axis=others) for labels in maps)
        # Fullness only decides among equally wrong slices, since it adds less than 1.
        found = wrong + filled / (np.max(filled) + 1)
        focus.append(int(np.argmax(found)) if np.any(found) else size // 2)
    return focus
