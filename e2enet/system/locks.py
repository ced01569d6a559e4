"""Locks on a folder of results: one process at a time, over all processes and machines that see the folder.

The operating system releases a lock when its holder dies, however it dies. Processes that the holder forks (a loader's
workers) do not keep the lock: filelock closes it in them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from e2enet.common.console import say
from e2enet.common.files import naming_unwritable, remove_temporaries

LOCK_NAME = ".lock"
# `is_held` shares the lock for a moment; an attempt to take it is repeated for longer than that.
PATIENCE = 2.0  # seconds


@contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder (created if missing) for the block; print a message and wait while another process holds it.

    The remains of interrupted writes are removed first: no other process writes here now.
    """
    with locked_file(folder / LOCK_NAME, f"{doing}: waiting for another run at work in {folder}"):
        remove_temporaries(folder)
        yield


@contextmanager
def claimed_folder(folder: Path) -> Iterator[bool]:
    """Hold the folder (created if missing) for the block if it is free; yield whether the block holds it.

    If it does, the remains of interrupted writes are removed first.
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
    """Hold a lock file (its folder is created if missing) for the block; print `waiting` before waiting for it."""
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
    """Whether a process holds the folder now; true if its lock may not be read.

    Only a shared lock is tried, which needs no write access: others who look do not see it.
    """
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held; or a file system without such locks, where the lock is that the file is there
        return True
    finally:
        os.close(descriptor)  # and with it the lock
    return False
