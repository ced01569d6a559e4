"""A report for people, on the terminal, and for programs, as JSON. Ids and paths are never cut short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

import numpy as np
from rich.text import Text

from e2enet.common.console import console, say
from e2enet.common.errors import InputError
from e2enet.common.files import read_json, write_json
from e2enet.data.checking.across import frame_depth_axis, in_frame, in_mm
from e2enet.data.checking.case import CaseFacts
from e2enet.data.checking.repair import Repair
from e2enet.data.checking.run import Report
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.grid import AXIS_NAMES
from e2enet.data.formats.problems import in_short

CASE_COLUMNS = ("case", "part", "shape", "spacing", "orientation", "channels", "type", "label type", "voxels of labels")
STYLES = {"error": "red", "warning": "yellow"}


def require_report_file(path: Path) -> None:
    """Raise InputError unless a report can be written to `path`. Files such as a dataset.json are not overwritten."""
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"report={path}: a file ending in .json expected")
    if path.exists() and not isinstance(read_json(path), list):
        raise InputError(f"report={path}: holds something else than a report, another name expected")


def write_report(path: str | Path, report: Report) -> None:
    """Write the problems as a JSON list of {"case", "severity", "problem", "file"}, atomically."""
    write_json(path, [problem.to_dict() for problem in report.problems])


def print_report(report: Report, verbose: bool = False) -> None:
    """Print a summary of the dataset, its problems in short, and the verdict. `verbose` adds a row per case."""
    if report.dataset is not None:
        say(f"{report.dataset.name}: {_parts(report.dataset)} in {report.folder}")
        if report.facts:
            for name, text in _summary(report.dataset, report.facts):
                say(f"  {name:<13}{text}")
            _print_table(("label", "name", "voxels", "share", "training cases"), _label_rows(report))
        if verbose:
            _print_table(CASE_COLUMNS, _case_rows(report.facts))
    for note in report.notes:
        say(f"  {note}")
    for problem, line in in_short(report.problems):
        # Matrices are indented below the line that introduces them.
        text = line.replace("\n", "\n    ")
        console.print(Text(f"{problem.severity}: ", STYLES[problem.severity]), text, sep="", soft_wrap=True)
    say(verdict(report))


def verdict(report: Report) -> str:
    """Return one sentence: how many problems there are, and whether training would be wrong."""
    errors, warnings = report.num_errors, len(report.problems) - report.num_errors
    counts = " and ".join(_counted(n, name) for n, name in ((errors, "error"), (warnings, "warning")) if n)
    if errors:
        return f"{counts}: training would be wrong."
    return f"{counts}: training can start." if warnings else "No problem found."


def print_repairs(repairs: Sequence[Repair], dataset: Path, target: Path) -> None:
    """Print which corrected copies were written, which labels have none and why, and what to do with the copies."""
    for repair in repairs:
        text = f"corrected copy {repair.copy}" if repair.copy else f"no corrected copy: {repair.reason}"
        say(f"repair: case {repair.case}: {repair.label}: {text}")
    copies = sum(repair.copy is not None for repair in repairs)
    if copies:
        advice = f"Look at them on their images, then: cp -r {quote(f'{target}/.')} {quote(str(dataset))}"
        say(f"{_counted(copies, 'corrected label')} in {target}; the originals are as they were. {advice}")
    else:
        say("repair: nothing was written.")


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns as wide as needed: a rich table would wrap or cut ids to fit the terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for line, style in ((header, "bold"), *((row, "") for row in rows)):
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        say(f"  {'  '.join(cells)}".rstrip(), style)


def _parts(dataset: RawDataset) -> str:
    parts = {"training": dataset.training, "validation": dataset.validation, "test": dataset.test}
    return ", ".join(f"{len(cases)} {name}" for name, cases in parts.items() if cases) + " cases"


def _summary(dataset: RawDataset, facts: Sequence[CaseFacts]) -> Iterator[tuple[str, str]]:
    depth_axis = frame_depth_axis(facts)
    frames = [in_frame(case, depth_axis) for case in facts]
    yield "channels", ", ".join(dataset.channels) or "unknown"
    yield "orientation", _frequencies(case.orientation for case in facts)
    yield "depth", f"the {AXIS_NAMES[depth_axis]} axis; shapes and spacings below name it first"
    yield "shape", _range([frame.frame_shape for frame in frames], "voxels")
    yield "spacing", _range([frame.spacing for frame in frames], "mm")
    yield "image type", _frequencies(dtype for case in facts for dtype in case.dtypes)
    yield "label type", _frequencies(case.label_dtype for case in facts if case.label_dtype)
    lows, highs = zip(*(case.intensities for case in facts), strict=True)
    yield "intensities", f"{min(lows):g} to {max(highs):g}"


def _range(triples: Sequence[Sequence[float]], unit: str) -> str:
    values = np.asarray(triples, dtype=float)
    low, high, median = (
        [f"{size:.4g}" for size in row] for row in (values.min(0), values.max(0), np.median(values, 0))
    )
    if low == high:
        return f"{' x '.join(low)} {unit} in every case"
    spans = [a if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True)]
    return f"{' x '.join(spans)} {unit}, median {' x '.join(median)}"


def _frequencies(values: Iterator[str]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in Counter(values).most_common()) or "none"


def _label_rows(report: Report) -> list[list[str]]:
    """Return a row per label of the dataset or its files, counted over the training cases."""
    assert report.dataset is not None
    counted = [case.voxels for case in report.facts if case.part == "training" and case.voxels is not None]
    total = sum(sum(voxels.values()) for voxels in counted)
    names = report.dataset.scheme.file_names
    rows = []
    for value in sorted({*names, *(value for voxels in counted for value in voxels)}):
        here = [voxels[value] for voxels in counted if value in voxels]
        share = f"{sum(here) / total:.3%}" if total else "-"
        rows.append(
            [str(value), names.get(value, "(unknown)"), str(sum(here)), share, f"{len(here)} of {len(counted)}"]
        )
    return rows


def _case_rows(facts: Sequence[CaseFacts]) -> list[list[str]]:
    depth_axis = frame_depth_axis(facts) if facts else 0
    rows = []
    for case in facts:
        frame = in_frame(case, depth_axis)
        voxels = "-" if case.voxels is None else ", ".join(f"{label}: {count}" for label, count in case.voxels.items())
        rows.append(
            [
                case.case.id,
                case.part,
                " x ".join(map(str, frame.frame_shape)),
                in_mm(frame.spacing),
                case.orientation,
                str(case.num_channels),
                "/".join(dict.fromkeys(case.dtypes)),
                case.label_dtype or "-",
                voxels,
            ]
        )
    return rows


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
