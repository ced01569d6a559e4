"""The command `e2enet`: one word for each of the package's programs."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    """A program of the package: the module that `python -m` runs, and what it does in a line."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("e2enet.commands.train", "train a network, predict and score its validation cases; sweeps"),
    "predict": Command("e2enet.commands.predict", "segment scans with trained models"),
    "check": Command("e2enet.data.check", "report all that is wrong with a dataset"),
    "prepare": Command("e2enet.data.prepare", "plan a dataset, and crop, resample and normalise its cases"),
    "evaluate": Command("e2enet.evaluation", "score predicted label images against reference ones"),
    "report": Command("e2enet.report", "tables, statistics and pictures of a sweep's runs"),
    "nnunet": Command("e2enet.nnunet", "E2ENet in nnU-Net: its trainer, plans, and checkpoints both ways"),
    "view": Command("e2enet.view", "write a folder that shows predictions in a browser, without a server"),
    "export": Command("e2enet.export", "hand a trained model to MONAI, ONNX or torch.export"),
}
HELP = ("--help", "-h")
USAGE = "usage: e2enet COMMAND [arguments]; e2enet COMMAND --help explains a command"
INPUT_ERROR, INTERRUPTED = 2, 130  # of e2enet.common.errors.ExitCode
# Distributions that are imported by another name.
DISTRIBUTIONS = {"hydra": "hydra-core", "ignite": "pytorch-ignite", "yaml": "omegaconf"}


def main() -> None:
    """Run the command that the command line names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in HELP:
        _end_with_reader()
        width = max(map(len, COMMANDS))
        print("\n".join([USAGE, "", *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())]))
        return
    if arguments[0] == "--version":
        print(importlib.metadata.version("e2enet"))
        return
    if arguments[0] not in COMMANDS:
        _exit(f"error: {arguments[0]!r} is no command; expected one of {', '.join(COMMANDS)}\n{USAGE}", INPUT_ERROR)
    run_command(arguments[0], arguments[1:])


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run a command in this process, exactly as `python -m MODULE ARGUMENTS` does.

    Lightning and multiprocessing start further processes by the name of the main module, which is therefore the
    command's own.
    """
    sys.argv[1:] = arguments
    if any(word in HELP for word in arguments):
        _end_with_reader()
    try:
        runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # while modules are loaded: what runs afterwards has its own word for it
        _exit("stopped; nothing was begun", INTERRUPTED)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        _exit(f"error: e2enet {name} needs {error.name}: pip install 'e2enet[{extra}]'", INPUT_ERROR)


def extra_of(module: str) -> str | None:
    """The smallest extra of the installed package that brings a module; None if none does."""
    try:
        requirements = importlib.metadata.requires("e2enet") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    packages: dict[str, set[str]] = {}
    for requirement in requirements:
        if found := re.match(r"([\w.-]+).*\bextra == ['\"]([\w-]+)['\"]", requirement):
            packages.setdefault(found[2], set()).add(_normal(found[1]))
    top = module.partition(".")[0]
    wanted = _normal(DISTRIBUTIONS.get(top, top))
    return min((extra for extra in packages if wanted in packages[extra]), key=lambda e: len(packages[e]), default=None)


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def _end_with_reader() -> None:
    """End without a word when the reader of the output does, as other programs do: e2enet train --help | head.

    Only for help: where there is work, the signal would also come from the pipes of worker processes.
    """
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _exit(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
