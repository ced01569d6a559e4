"""Keys of cached results: hashes of everything that a result depends on, so that a stale one is never
taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def content_key(content: Any) -> str:
    """SHA-256 of plain containers, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_states(files: Iterable[Path]) -> list[Any]:
    """Name, size in bytes and modification time of each file: what tells a changed raw file from the one
    used.

    Contents are not read: hashing a terabyte of scans at every start would cost more than it saves.
    """
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
