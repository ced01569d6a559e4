"""Files that are either complete or absent: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import csv
import errno
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
# System errors that the user can correct: a full disk, a read-only file system, a missing permission, a file in place
# of a folder or the reverse, a name too long.
NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
MAX_LEVELS = 50  # of nested lists and objects in a JSON file; those of e2enet have six


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to (a file or a folder); rename it to `path` when the block ends.

    The sibling keeps the whole suffix (`.nii.gz`), since writers choose the format by it. Its name starts with a dot,
    so that listings do not take a file left by a crash for data. Parents are created. If the block raises, the sibling
    is removed and an earlier `path` stays. A folder replaces an empty folder only (`require_new_folder`).

    Raises:
        InputError: names `path`; the disk is full or not writable.
    """
    path = Path(path)
    place = path.resolve() if path.is_dir() else path  # a folder cannot take the place of a link to a folder
    temporary = place.parent / f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{place.name}"
    with _named_where_not_writable(path, temporary):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, place)
        except BaseException:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
            raise


def unusable_folder(folder: str | Path, *, writable: bool = True) -> str | None:
    """Return why a folder cannot be used, or created if it is missing; None if it can. Nothing is written.

    Args:
        folder: its path.
        writable: whether files are to be written to it.
    """
    folder = Path(folder)
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        if not there.is_dir():
            return f"{there} is {'a file' if there.exists() else 'a link to what is not there'}; a folder expected"
    except OSError as error:
        return f"{error.filename}: {_reason(error)}; a folder expected"
    if writable and not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to; the permission to write expected"
    return None


def require_new_folder(folder: str | Path, name: str | None = None, *, also: str = "") -> None:
    """Raise InputError unless a folder is missing or empty, and can be written. Nothing is written.

    Call it before long work whose result goes there.

    Args:
        folder: Its path.
        name: What the message calls it, such as "--output FOLDER"; None: its path.
        also: What else the caller accepts there, such as "an earlier viewer".
    """
    folder = Path(folder)
    problem = unusable_folder(folder)
    if problem is None and folder.is_dir():
        with naming_unreadable(folder):
            if any(folder.iterdir()):
                problem = f"is there and not empty; a new or empty folder{f', or {also},' * bool(also)} expected"
    if problem is not None:
        raise InputError(f"{name or folder}: {problem}")


def require_writable(folder: str | Path) -> None:
    """Create a folder and a test file in it, which is removed again; InputError naming the folder if that fails.

    Call it before long work, which would otherwise fail at its first result.
    """
    folder = Path(folder)
    probe = folder / f"{TEMPORARY}{uuid.uuid4().hex[:8]}"
    with _named_where_not_writable(folder, probe):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))  # a full disk still accepts empty files
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def naming_unwritable(path: str | Path) -> Iterator[None]:
    """Turn a system error about writing `path`, or a folder above it, into an InputError."""
    with _named_where_not_writable(Path(path), Path(path)):
        yield


@contextmanager
def naming_unreadable(path: str | Path) -> Iterator[None]:
    """Turn a system error about reading (permissions, names too long, failing disks) into an InputError.

    It names `path` if the system names no file.
    """
    try:
        yield
    except OSError as error:
        name = error.filename if error.filename is not None else path
        raise InputError(f"{name}: cannot be read ({_reason(error)}); a readable file or folder expected") from error


@contextmanager
def _named_where_not_writable(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The block may also read other files: their errors are not about `path`.
        ours = error.filename is None or temporary.is_relative_to(error.filename)
        if error.errno not in NOT_WRITABLE or not ours:
            raise
        text = f"{path}: cannot be written ({_reason(error)}); free space and the permission to write expected"
        raise InputError(text) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def sync_to_disk(path: str | Path) -> None:
    """Write a file's content, or the names in a folder, to disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove the remains of killed writes in a folder and below; call it only if no other process writes there."""
    for path in [*folder.rglob(f"{TEMPORARY}*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write plain containers as indented JSON, atomically; NumPy scalars and arrays become numbers and lists."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; InputError naming the file if it is missing or not valid JSON.

    The encoding is UTF-8 or UTF-16, with or without the byte order mark of editors on Windows.

    Some content that Python would accept is refused too: a key twice in one object (the first would be lost), text that
    cannot be encoded (half a surrogate pair), and nesting deeper than MAX_LEVELS.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # a number of more than 4300 digits is a plain ValueError
        raise InputError(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from error
    if not _is_flat(content):
        raise InputError(f"{path}: not valid JSON here (lists or objects nested more than {MAX_LEVELS} deep)")
    return content


def read_remembered(path: str | Path) -> dict[str, Any] | None:
    """Read the JSON object of a file that can be rebuilt; None if the file is missing or damaged."""
    try:
        content = read_json(path)
    except InputError:
        return None
    return content if isinstance(content, dict) else None


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV with a header, atomically.

    `columns` sets names and order; by default they are the rows' keys in order of first appearance. A key that a row
    lacks is left empty. A key that is not among `columns` raises ValueError.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, restval="", extrasaction="raise")
        writer.writeheader()
        writer.writerows(rows)


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return content


def _is_flat(content: Any) -> bool:
    """Whether nesting is within MAX_LEVELS; checked level by level, since a recursive walk could overflow."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_LEVELS):
        inside = [value.values() if isinstance(value, dict) else value for value in level]
        level = [child for values in inside for child in values if isinstance(child, dict | list)]
        if not level:
            return True
    return False


def _plain(value: Any) -> Any:
    """Convert NumPy values (anything with `tolist`) and paths for JSON; NaN stays NaN, which Python reads back."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def content_key(content: Any) -> str:
    """Return the SHA-256 of plain containers, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_states(files: Iterable[Path]) -> list[Any]:
    """Return name, size in bytes and modification time (ns) of each file, to detect changed raw files.

    Contents are not read: hashing a terabyte of scans at every start would take too long.
    """
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
