"""Errors that a user can mend: one type, raised once with every problem in it, printed without a traceback; and what
the commands' exit codes mean."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended, for scripts and schedulers; 0 is as usual, any other crash is Python's 1.

    The last two are what shells count for a process that a signal ended (128 and its number).
    """

    UNFINISHED = 1  # it ran to its end, and some case or job failed, or a check found something
    INPUT_ERROR = 2  # nothing was begun, or no further: what was given is wrong
    INTERRUPTED = 130  # by Ctrl-C (SIGINT)
    TERMINATED = 143  # by SIGTERM, as schedulers send it


class InputError(ValueError):
    """Something that the user gave (a file, a config value, a folder) is wrong; the message says what was
    expected."""


def raise_problems(problems: Sequence[str], heading: str) -> None:
    """Raise one InputError that lists every problem under the heading; return quietly where there is none.

    Collecting first and raising once spares the user a run per mistake.
    """
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise InputError(f"{heading}\n{lines}")


def first_line(error: BaseException) -> str:
    """An error's message without what libraries append below it; its type where it says nothing."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def printable(text: str, encoding: str | None = None) -> str:
    """The text with signs that would steer a terminal, or that the encoding lacks, spelled as Python spells them.

    Names of files and classes may hold them: an escape sequence would colour or clear the screen, and half a surrogate
    pair, which stands for a byte that is no UTF-8, cannot be written anywhere.
    """
    encoding = encoding or "utf-8"
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def exit_on_input_error(advice: str = "stopped; the same command goes on with what is not done yet") -> Iterator[None]:
    """Turn an InputError into its message on stderr and exit code 2, and Ctrl-C into one line of advice and 130.

    Works as a context (`with exit_on_input_error():`) and as a decorator (`@exit_on_input_error()`) of a
    main. Any other exception keeps its traceback: it is our fault, not the user's.

    Args:
        advice: what to do after Ctrl-C, where the KeyboardInterrupt does not say it itself.
    """
    try:
        yield
    except InputError as error:
        print(printable(f"error: {error}", sys.stderr.encoding), file=sys.stderr)
        sys.exit(ExitCode.INPUT_ERROR)
    except KeyboardInterrupt as stop:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would break off the interpreter's own end
        print(printable(str(stop) or advice, sys.stderr.encoding), file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
