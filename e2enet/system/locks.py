"""One process at a time in a folder of results, over all processes and machines that see it.

The operating system gives a lock back when its holder dies, however it dies. Children that a holder forks (a loader's
workers) do not keep it: filelock closes it in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from e2enet.common.console import say
from e2enet.common.files import naming_unwritable, remove_temporaries

LOCK_NAME = ".lock"
# Whoever asks whether a folder is held holds it for a moment; an attempt to take it is repeated for longer than that.
PATIENCE = 2.0  # seconds


@contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder (created where it is missing) for the block; waits, and says so, while another holds it.

    What interrupted writes left behind is removed first: nobody else writes here now.
    """
    with locked_file(folder / LOCK_NAME, f"{doing}: waiting for another run at work in {folder}"):
        remove_temporaries(folder)
        yield


@contextmanager
def claimed_folder(folder: Path) -> Iterator[bool]:
    """Hold the folder (created where it is missing) for the block if nobody does; whether it is held now.

    Where it is, what interrupted writes left behind is removed first.
    """
    lock = FileLock(folder / LOCK_NAME)
    with naming_unwritable(folder / LOCK_NAME):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            held = False
        else:
            held = True
    if not held:
        yield False
        return
    try:
        remove_temporaries(folder)
        yield True
    finally:
        lock.release()


@contextmanager
def locked_file(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file (its folder is created where it is missing) for the block; prints `waiting` before it waits."""
    lock = FileLock(path)
    with naming_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(waiting)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder now; true where that cannot be found out, as in somebody else's folder."""
    path = folder / LOCK_NAME
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, PermissionError):
        return True
    lock.release()
    return False
