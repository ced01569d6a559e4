"""Measured latency and memory of a sweep's networks, as `e2enet.report.measure` wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError
from e2enet.common.files import read_json

MEASURED_FILE = "measured.json"


def read_measured(folder: str | Path) -> dict[str, Any]:
    """Read what `measure_runs` wrote into a sweep folder, by job key; {} if nothing was measured."""
    path = Path(folder) / MEASURED_FILE
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise InputError(f"{path}: not written by e2enet.report.measure; expected an object per job. Remove it")
    return content
