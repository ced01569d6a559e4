"""The disk cache of compiled loops: one folder for every state of the package's code.

numba keeps compiled code until the file that holds the function changes. The loops here also take constants, other
loops and field orders from other files. Code compiled with old ones would write past its volumes. The folder's name is
therefore a hash of all code of `e2enet.network` and of the compiler's version. numba itself tells processors apart.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

ROOM, NAME = Path(__file__).parent, "e2enet.network"
# The debug mode of `engine.checks`, for whoever changes the loops. numba then checks the indices of arrays.
CHECK_BOUNDS = os.environ.get("E2ENET_ENGINE_CHECKS", "0") not in ("", "0")
PREFIX, KEPT = "loops-", 4  # the last folders stay, a few MB each: users switch between branches
_lock = threading.Lock()


def compile_cached(compile_function: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Return `compile_function(function, cache=True)`, kept in `cache_folder`.

    It compiles without `cache` if there is no folder, and if files have changed since they were imported: the compiled
    code would not match the files.
    """
    import numba

    folder = cache_folder() if _signature() == _IMPORTED else None
    if folder is None:
        return compile_function(function)
    settings: Any = numba.config
    with _lock:  # a function reads its folder from the settings here, once
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
        try:
            return compile_function(function, cache=True)
        finally:
            settings.CACHE_DIR = before


@cache
def cache_folder() -> Path | None:
    """Return the folder of this code: in NUMBA_CACHE_DIR if set, else beside the code, else in the user's cache.

    None if no folder is writable.
    """
    import numba

    settings: Any = numba.config
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e2enet"
    name = PREFIX + loops_key()
    for parent in [Path(settings.CACHE_DIR)] if settings.CACHE_DIR else [ROOM / "__pycache__", user]:
        if _is_open(parent / name):
            return parent / name
    return None


@cache
def loops_key() -> str:
    """Return what tells the compiled loops of this process from others: their code, and whether they check bounds."""
    return code_key(ROOM, NAME) + ("-checked" if CHECK_BOUNDS else "")


def code_key(folder: Path, package: str) -> str:
    """Return a hash of the code of a package's modules as Python loads it, and of the versions that compile it.

    The loaded code may differ from the source: Python runs a .pyc file that records the source's time and size,
    whatever the source contains.
    """
    import llvmlite
    import numba
    import numpy as np

    found = hashlib.sha256(repr((sys.version, numba.__version__, llvmlite.__version__, np.__version__)).encode())
    for name, code in _modules(folder, package):
        found.update(repr((name, _described(code))).encode())
    return found.hexdigest()[:16]


def _modules(folder: Path, package: str) -> Iterator[tuple[str, CodeType]]:
    for module in pkgutil.iter_modules([str(folder)], f"{package}."):
        spec: Any = module.module_finder.find_spec(module.name)  # type: ignore[call-arg]
        yield module.name, spec.loader.get_code(module.name)
        if module.ispkg:
            yield from _modules(folder / module.name.rpartition(".")[2], module.name)


def _described(code: CodeType) -> tuple[Any, ...]:
    """Return all that determines what code does: everything but line numbers, with sets in a fixed order."""
    constants = [
        _described(value)
        if isinstance(value, CodeType)
        else sorted(map(repr, value))
        if isinstance(value, frozenset)
        else value
        for value in code.co_consts
    ]
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return code.co_code, getattr(code, "co_exceptiontable", b""), code.co_flags, names, constants


def _signature() -> list[tuple[str, int, int, int]]:
    """Return path, times and size of every file. ctime changes even if mtime was set back."""
    found = [(path, path.stat()) for path in sorted(ROOM.rglob("*.py"))]
    return [(str(path), stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size) for path, stat in found]


_IMPORTED = _signature()


def _is_open(folder: Path) -> bool:
    """Return whether files may be written there. Create the folder if missing, and delete its oldest siblings."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            others = [other for other in folder.parent.glob(f"{PREFIX}*") if other != folder]
            for old in sorted(others, key=lambda other: -other.stat().st_mtime)[KEPT - 1 :]:
                shutil.rmtree(old, ignore_errors=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
