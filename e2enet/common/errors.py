"""Errors that a user can correct, printed without a traceback, and the commands' exit codes."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes for scripts and schedulers; 0 is success, and Python exits with 1 after any other exception.

    The last two are 128 plus the number of the signal, as in shells.
    """

    UNFINISHED = 1  # the command ran to its end, but some case or job failed, or a check found problems
    INPUT_ERROR = 2  # the input is wrong; the command did not start or stopped there
    INTERRUPTED = 130  # by Ctrl-C (SIGINT)
    TERMINATED = 143  # by SIGTERM, as schedulers send it


class InputError(ValueError):
    """A user's input (a file, a config value, a folder) is wrong; the message says what was expected."""


def raise_problems(problems: Sequence[str], heading: str) -> None:
    """Raise one InputError that lists every problem under the heading; do nothing if there is none.

    Collecting first and raising once spares the user one run per mistake.
    """
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise InputError(f"{heading}\n{lines}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def refused_part(error: BaseException) -> str:
    """Return what torch's `weights_only` refused in a file, as " (posix.system)", or "" if it names nothing.

    The rest of torch's message advises to load the file without it.
    """
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({found[1]})" if found else ""


def printable(text: str, encoding: str | None = None) -> str:
    """Escape, in Python's spelling, characters that would control a terminal or that the encoding lacks.

    Names of files and classes may hold them. An escape sequence would colour or clear the screen. Half a surrogate
    pair, which stands for a byte that is not UTF-8, cannot be encoded at all.
    """
    encoding = encoding or "utf-8"
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def exit_on_input_error(advice: str = "stopped; the same command goes on with what is not done yet") -> Iterator[None]:
    """Turn an InputError into its message on stderr and exit code 2, and Ctrl-C into one line of advice and 130.

    Works as a context manager (`with exit_on_input_error():`) and as a decorator (`@exit_on_input_error()`) of a
    main function. Any other exception keeps its traceback: it is a bug of the program, not the user's mistake.

    Args:
        advice: what to do after Ctrl-C, if the KeyboardInterrupt itself has no message.
    """
    try:
        yield
    except InputError as error:
        print(printable(f"error: {error}", sys.stderr.encoding), file=sys.stderr)
        sys.exit(ExitCode.INPUT_ERROR)
    except KeyboardInterrupt as stop:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would interrupt the interpreter's shutdown
        print(printable(str(stop) or advice, sys.stderr.encoding), file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
