"""Notes which case each worker of a loader reads, in memory that outlives the worker.

An exception in a worker reaches training with its traceback, and its case's id is added here. A worker that is killed,
for example when memory runs out, leaves no message: torch knows only its process id. So every worker notes the case
that it reads in shared memory.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import get_worker_info

from e2enet.common.errors import InputError

# torch's message about workers that ended by themselves, from its signal handler or its queue.
DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
# Raised on reading a batch whose worker ended before it had passed all of it on. Other OSErrors, as of a full disk, are
# not about workers, even if some have ended normally.
LOST_CONNECTION = (ConnectionError, FileNotFoundError, EOFError)
NOTHING_YET = -1


class WorkerNotes:
    """A row per worker: its process id, the position of its case, and 1 while it reads the case, then 0.

    Args:
        cases: Ids of the cases, by position.
        num_workers: Workers of the loader; 0 keeps no notes.
    """

    def __init__(self, cases: Sequence[str], num_workers: int) -> None:
        self.cases = list(cases)
        self.table = torch.full((num_workers, 3), NOTHING_YET).share_memory_()

    @contextmanager
    def reading(self, position: int, sample: str) -> Iterator[None]:
        """Note the case that the block reads. If the block fails, the error names the case.

        Raises:
            InputError: if the block raises one, with the case before its message.
            RuntimeError: from any other exception of the block, with the case and `sample`.
        """
        worker = get_worker_info()
        if worker is not None and worker.id < len(self.table):
            self.table[worker.id] = torch.tensor([os.getpid(), position, 1])
        case = self.cases[position]
        try:
            yield
        except InputError as error:
            raise InputError(f"case {case}: {error}") from error
        except Exception as error:
            words = f"{type(error).__name__}: {error}".rstrip(": ")
            raise RuntimeError(f"case {case} cannot be read for training ({sample}): {words}") from error
        if worker is not None and worker.id < len(self.table):
            self.table[worker.id, 2] = 0

    def explain(self, error: BaseException) -> str | None:
        """Return which case each dead worker held, if the exception is about dead workers; else None."""
        lists = [found for text in _messages(error) for found in DEAD_WORKER.findall(text)]
        dead = [int(pid) for found in lists for pid in found.split(",")]
        by_pid = {int(pid): (position, bool(reading)) for pid, position, reading in self.table.tolist()}
        if not dead and isinstance(error, LOST_CONNECTION):
            dead = _ended(by_pid.keys() - {NOTHING_YET})
        if not dead:
            return None
        return "; ".join(self._line(pid, *by_pid.get(pid, (NOTHING_YET, False))) for pid in dict.fromkeys(dead))

    def _line(self, pid: int, position: int, reading: bool) -> str:
        if position == NOTHING_YET:
            return f"loader worker {pid} ended before its first case"
        return f"loader worker {pid} ended {'while' if reading else 'after'} reading case {self.cases[position]}"


@contextmanager
def naming_held_cases(loader: Callable[[], Any]) -> Iterator[None]:
    """Name the cases of workers that die in a block that trains; `loader` returns the loader of its `PatchDataset`.

    Raises:
        RuntimeError: in place of torch's error, with the case of each dead worker and advice.
    """
    try:
        yield
    except (RuntimeError, *LOST_CONNECTION) as error:
        notes = getattr(getattr(loader(), "dataset", None), "notes", None)
        held = notes.explain(error) if isinstance(notes, WorkerNotes) else None
        if held is None:
            raise
        # If torch's queue wraps the error of its signal handler, the latter says what ended the worker.
        *_, reason = [str(error), *filter(DEAD_WORKER.search, _messages(error))]
        raise RuntimeError(
            f"{held} ({reason.strip().rstrip('.')}). A worker that is killed has most often run out of memory: "
            "fewer data.num_workers, a smaller plan.patch_size or plan.batch_size need less"
        ) from error


def _ended(workers: Collection[int], patience: float = 2.0) -> list[int]:
    """Return the workers that have ended; waits a moment for one, since its sockets close before it ends."""
    stop = time.monotonic() + patience
    while True:
        alive = {child.pid for child in multiprocessing.active_children()}
        ended = [pid for pid in workers if pid not in alive]
        if ended or time.monotonic() > stop:
            return ended
        time.sleep(0.05)


def _messages(error: BaseException | None) -> Iterator[str]:
    """Yield the messages of an exception and of the exceptions it was raised from."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
