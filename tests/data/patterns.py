"""Layouts of conf/data, and folders for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.signatures import build_part
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.layout import Layout
from tests.data.folders import touch

TABLE = LabelTable({0: "background", 1: "organ"})


@cache
def layout(name: str) -> Layout:
    """The layout of conf/data/NAME.yaml."""
    return build_part(as_plain(compose_config([f"data={name}"]).data.layout))


def scanned(layout: Layout, folder: Path) -> tuple[Any, set[tuple[str | None, str, str, str]]]:
    """Return the dataset, and its problems with files relative to the folder."""
    problems: list[Problem] = []
    dataset = layout.scan(folder, problems, TABLE)
    told = {(one.case, one.severity, one.problem, str(one.file).removeprefix(f"{folder}/")) for one in problems}
    return dataset, told


def acdc(folder: Path, part: str, *patients: int) -> None:
    for number in patients:
        patient = f"patient{number:03d}"
        names = ("4d", "frame01", "frame01_gt", "frame12", "frame12_gt")
        touch(folder / part / patient, "Info.cfg", *(f"{patient}_{name}.nii.gz" for name in names))
