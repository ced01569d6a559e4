"""Process many items in worker processes: one thread each, one item at a time, failures reported per item.

A pool of the standard library fails as a whole when one of its processes dies, and does not say on which item. Here
each process has its own pipe. So the item of a dead process is known, a new process replaces it, and the others
continue.
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
        message: That of an InputError, else the last line of the traceback, or how the process died.
        wrong_input: Whether it was an InputError, which the user can correct.
        traceback: The worker's, if there is one.
    """

    message: str
    wrong_input: bool = False
    traceback: str = ""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """An item with its result or its failure."""

    item: Item
    result: Result | None
    failure: Failure | None = None


def run_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Outcome[Item, Result]]:
    """Yield the outcome of `function(item)` for every item, in the order in which they finish.

    If the generator is left early, by an exception or `close()`, it ends its processes.

    Args:
        function: Importable by name, since workers are new interpreters; items and results must pickle.
        items: Taken one by one as workers become free, so the largest should come first.
        num_workers: Number of processes; 0 does the work in this process, for debugging.

    Raises:
        RuntimeError: a process ends before its first item. Every process does if they are started by a script without
            `if __name__ == "__main__":`, since they import it.
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
    """A process and its current item."""

    def __init__(self, function: Callable[[Item], Any], item: Item) -> None:
        context = get_context("spawn")  # a fork would copy locks held by threads of this process (progress bars)
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(function, theirs), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.item = item
        self.ready = False
        self.take(item)

    def greet(self) -> None:
        """Receive the worker's first message; RuntimeError if the process ended by itself without one."""
        self.ready = True
        try:
            self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            if (self.process.exitcode or 0) < 0:
                return  # killed by a signal: reported as the outcome of its item
            raise RuntimeError(
                f"a worker process ended with exit code {self.process.exitcode} before its first item (its own message "
                'is above). A script that starts workers must do so under `if __name__ == "__main__":`, since they '
                "import it"
            ) from None

    def take(self, item: Item) -> bool:
        """Send an item to the process; return False if the process is gone."""
        self.item = item
        try:
            self.connection.send(item)
        except OSError:
            return False
        return True

    def outcome(self) -> Outcome[Item, Any]:
        """Wait for the outcome of the item and return it."""
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
    """Main function of a worker: receive items and send outcomes until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
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
    """Exit when the parent dies: an orphan must not write beside the run that replaces a killed one."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(item, function(item))
    except Exception as error:  # returned with its traceback, so that the other items are still processed
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
    """Set the environment so that libraries of a process started in the block use one thread."""
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
