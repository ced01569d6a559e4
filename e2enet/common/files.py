"""Files that are either complete or absent: written beside their place under another name, then renamed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2enet.common.errors import InputError

TEMPORARY = ".tmp-"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to (a file or a folder); it takes its place when the block
    ends well.

    The sibling keeps the whole suffix (`.nii.gz`), since writers choose the format by it, and starts with a
    dot, so that a crash leaves nothing that a later listing would take for data. Parents are created. When
    the block raises, the sibling is removed and whatever stood at `path` before stays. A folder can only take
    a free place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def sync_to_disk(path: str | Path) -> None:
    """Return when a file's content, or the names in a folder, will survive even a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what writes that were killed left in a folder and below; only where nobody else writes."""
    for path in [*folder.rglob(f"{TEMPORARY}*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write plain containers as indented JSON, atomically. NumPy scalars and arrays become numbers and
    lists."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; InputError naming the file where it is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV with a header, atomically.

    `columns` fixes names and order; without it they are the rows' keys in order of first appearance. A key
    that a row lacks is left empty; a key that is not among `columns` is an error (ValueError), not silently
    lost.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, restval="", extrasaction="raise")
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    """NumPy values (anything with `tolist`) and paths as JSON can hold them; NaN stays NaN, which Python
    reads back."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def content_key(content: Any) -> str:
    """SHA-256 of plain containers, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_states(files: Iterable[Path]) -> list[Any]:
    """Name, size in bytes and modification time of each file: what tells a changed raw file from the one
    used.

    Contents are not read: hashing a terabyte of scans at every start would cost more than it saves.
    """
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
