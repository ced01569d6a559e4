"""Where compiled loops are kept on disk: in a folder of their own for every state of the package's code.

numba keeps what it has compiled until the file that holds the function changes. Our loops take constants, other loops
and the order of fields from further files; what was compiled with others would write past its volumes. So the code of
all of the room is in the folder's name, together with the compiler's version; numba itself tells processors apart.
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
PREFIX, KEPT = "loops-", 4  # folders of the last states stay, each of a few MB: branches are changed to and fro
_lock = threading.Lock()


def compile_cached(compile_function: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """`compile_function(function, cache=True)`, kept in `cache_folder`; without `cache` where there is none.

    Nor where files have changed since they were imported: what is compiled now is not what they say.
    """
    import numba

    folder = cache_folder() if _signature() == _IMPORTED else None
    if folder is None:
        return compile_function(function)
    settings: Any = numba.config
    with _lock:  # a function takes its folder from the settings now, and keeps it
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
        try:
            return compile_function(function, cache=True)
        finally:
            settings.CACHE_DIR = before


@cache
def cache_folder() -> Path | None:
    """The folder of this code: in NUMBA_CACHE_DIR where that is set, else beside the code, else in the user's cache.

    None where nothing may be written.
    """
    import numba

    settings: Any = numba.config
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e2enet"
    name = PREFIX + code_key(ROOM, NAME)
    for parent in [Path(settings.CACHE_DIR)] if settings.CACHE_DIR else [ROOM / "__pycache__", user]:
        if _is_open(parent / name):
            return parent / name
    return None


def code_key(folder: Path, package: str) -> str:
    """A hash of the code of all modules of a package as Python loads it, and of the versions that compile it.

    As Python loads it: compiled files that are as old and large as their source are run, whatever it says now.
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
    """What code does: all of it but where its lines are; sets in an order that is always the same."""
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
    """What changes with a file, ctime even where its time was set back."""
    found = [(path, path.stat()) for path in sorted(ROOM.rglob("*.py"))]
    return [(str(path), stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size) for path, stat in found]


_IMPORTED = _signature()


def _is_open(folder: Path) -> bool:
    """Whether files may be written there; it is made where it is not there, and of its siblings the last few stay."""
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
