"""One process at a time in a folder of results, over all processes and machines that see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from e2enet.common.console import console
from e2enet.common.files import remove_temporaries

LOCK_NAME = ".lock"


@contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder (created where it is missing) for the block; waits, and says so, while another holds it.

    The operating system gives the lock back when its holder dies, however it dies. What interrupted writes
    left behind is removed first: nobody else writes here now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"{doing}: waiting for another run at work in {folder}", markup=False, highlight=False)
        lock.acquire()
    try:
        remove_temporaries(folder)
        yield
    finally:
        lock.release()
