"""Folders of empty files for tests of layouts, and what is reported about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2enet.data.formats.problems import Problem


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def link(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/nowhere/x.nii.gz")
    return path


def describe(folder: Path, encoding: str = "utf-8", **content: Any) -> Path:
    text = json.dumps({"modality": {"0": "CT"}, "labels": {"0": "background", "1": "Lebertöne"}} | content)
    (folder / "dataset.json").write_bytes(text.replace("\\u00f6", "ö").encode(encoding))
    return folder


def told(problems: list[Problem], folder: Path) -> set[tuple[str, str, str]]:
    return {(one.severity, one.problem, str(Path(str(one.file)).relative_to(folder))) for one in problems}
