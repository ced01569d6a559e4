"""Work on many items in worker processes: one thread each, one item at a time, no item hides another's failure.

A pool of the standard library gives up as a whole when one of its processes dies, and does not say over which item.
Here each process has its own pipe, so the item that it held is known, a fresh process takes its place, and the others
go on.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from e2enet.common.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


@dataclass(frozen=True)
class Failure:
    """Why an item has no result.

    Attributes:
        message: In words; that of an InputError, else the last line of the traceback, or how the process died.
        wrong_input: Whether it was an InputError: the user's to mend.
        traceback: The worker's, where there is one.
    """

    message: str
    wrong_input: bool = False
    traceback: str = ""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """An item with its result, or with the failure that kept it from having one."""

    item: Item
    result: Result | None
    failure: Failure | None = None


def run_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Outcome[Item, Result]]:
    """Yield the outcome of `function(item)` for every item, in the order in which they finish.

    Args:
        function: Importable by name, since workers are fresh interpreters; items and results must pickle.
        items: Taken one by one as workers become free, so the largest belong first.
        num_workers: Processes; 0 does the work in this process, for debugging.

    Raises:
        RuntimeError: where a process ends before it could take its first item, as it does for each when they are
            started by a script without `if __name__ == "__main__":`, which they import.

    Left early, by an exception or `close()`, the generator ends its processes.
    """
    if num_workers == 0:
        yield from (_attempt(function, item) for item in items)
        return
    waiting = iter(items)
    workers: dict[Connection, _Worker[Item]] = {}
    try:
        for item in waiting:
            worker = _Worker(function, item)
            workers[worker.connection] = worker
            if len(workers) == num_workers:
                break
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                if not worker.ready:
                    worker.greet()
                    continue
                del workers[connection]
                outcome = worker.outcome()
                for item in waiting:  # at most one
                    if not worker.take(item):
                        worker = _Worker(function, item)
                    workers[worker.connection] = worker
                    break
                else:
                    worker.stop()
                yield outcome
    finally:
        for worker in workers.values():
            worker.stop(at_once=True)


class _Worker(Generic[Item]):
    """A process and the item that it works on."""

    def __init__(self, function: Callable[[Item], Any], item: Item) -> None:
        context = get_context("spawn")  # a fork would copy locks that threads of this process (progress) may hold
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(function, theirs), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.item = item
        self.ready = False
        self.take(item)

    def greet(self) -> None:
        """Receive the first sign of life; RuntimeError where the process ended by itself without one."""
        self.ready = True
        try:
            self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            if (self.process.exitcode or 0) < 0:
                return  # killed: told with its item
            raise RuntimeError(
                f"a worker process ended with exit code {self.process.exitcode} before its first item (its own message "
                'is above). A script that starts workers must do so under `if __name__ == "__main__":`, since they '
                "import it"
            ) from None

    def take(self, item: Item) -> bool:
        """Hand over an item; False where the process is gone."""
        self.item = item
        try:
            self.connection.send(item)
        except OSError:
            return False
        return True

    def outcome(self) -> Outcome[Item, Any]:
        """What came of the item; waits for it."""
        try:
            result, failure = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Outcome(self.item, None, Failure(_cause_of_death(self.process.exitcode)))
        return Outcome(self.item, result, failure)

    def stop(self, at_once: bool = False) -> None:
        """End the process, which is idle unless `at_once`."""
        if at_once:
            self.process.terminate()
        self.connection.close()  # an idle process ends when its pipe does
        self.process.join()


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """Main of a worker: items in, outcomes out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection.send("ready")
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        outcome = _attempt(function, item)
        connection.send((outcome.result, outcome.failure))


def _end_with_parent() -> None:
    """An orphan must not go on writing beside the run that takes over from one that was killed."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(item, function(item))
    except Exception as error:  # handed on with its traceback, so that the other items are still worked on
        wrong_input = isinstance(error, InputError)
        message = str(error) if wrong_input else traceback.format_exception_only(error)[-1].strip()
        return Outcome(item, None, Failure(message, wrong_input, traceback.format_exc()))


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"its worker process was ended by {name}{hint}"
    return f"its worker process ended with exit code {exit_code}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Environment in which libraries of a process started now keep to one thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
