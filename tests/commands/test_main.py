"""`e2enet COMMAND`: every program of the package under one name, and what is missing said by its extra."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from e2enet import __main__ as entry
from e2enet.common.configs import ROOT

REQUIREMENTS = [
    "torch>=2.6",
    "hydra-core>=1.3 ; extra == 'all'",  # a wheel writes out what an extra takes from others
    'pandas>=2.2; extra == "all"',
    "hydra-core>=1.3 ; extra == 'train'",
    'pandas>=2.2; extra == "report"',
]


def e2enet(*arguments: str, before: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, after some Python."""
    program = f"import sys; sys.argv[1:] = {list(arguments)!r}\n{before}\nfrom e2enet.__main__ import main\nmain()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True)


def test_every_command_is_a_module_with_a_main() -> None:
    for command in entry.COMMANDS.values():
        spec = importlib.util.find_spec(command.module)
        assert spec is not None
        if spec.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{command.module}.__main__") is not None


def test_help_lists_every_command() -> None:
    for arguments in ((), ("--help",), ("-h",)):
        done = e2enet(*arguments)
        assert done.returncode == 0
        listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
        assert listed == list(entry.COMMANDS)


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_every_command_explains_itself_anywhere(command: str, tmp_path: Path) -> None:
    done = e2enet(command, "--help", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 10
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_help_does_not_wait_for_the_frameworks(command: str) -> None:
    """An import of torch takes two seconds, one of Lightning five."""
    refuse = """
import importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "monai", "torchio", "pandas", "matplotlib", "numba"):
            raise AssertionError(f"--help imports {name}")
sys.meta_path.insert(0, Refuse())
"""
    done = e2enet(command, "--help", before=refuse)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="this system has no SIGPIPE")
@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "--help"), ("predict", "-h"), ("view", "--help")])
def test_help_ends_quietly_with_its_reader(arguments: tuple[str, ...]) -> None:
    """As in `e2enet train --help | head -n 1`, where head closes the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "e2enet", *arguments]
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_an_unknown_command_is_told_with_the_known_ones() -> None:
    done = e2enet("trian")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: 'trian' is no command; expected one of train, predict, check")


def test_a_command_fails_by_its_exit_code() -> None:
    done = e2enet("check", "data=msdd")
    assert done.returncode == 2 and "msdd" in done.stderr and "Traceback" not in done.stderr


def test_the_extra_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: REQUIREMENTS)
    expected = {"hydra.core.plugins": "train", "pandas": "report", "torch": None, "numpy": None, "e2enet.no": None}
    assert {name: entry.extra_of(name) for name in expected} == expected


@pytest.mark.parametrize(("command", "missing"), [("train", "hydra"), ("predict", "omegaconf")])
def test_what_is_not_installed_is_named_with_its_extra(command: str, missing: str) -> None:
    requirements = [f"{entry.DISTRIBUTIONS.get(missing, missing)}>=1 ; extra == 'train'"]
    lacking = f"import importlib.metadata as m\nm.requires = lambda _: {requirements}\nsys.modules[{missing!r}] = None"
    done = e2enet(command, "--help", before=lacking)
    assert done.returncode == 2
    assert done.stderr == f"error: e2enet {command} needs {missing}: pip install 'e2enet[train]'\n"
