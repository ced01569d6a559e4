"""A folder that one process holds at a time, and that the system gives back when its holder dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from e2enet.common.locks import locked_folder

HOLD = """
import sys, time
from pathlib import Path
from e2enet.common.locks import locked_folder
with locked_folder(Path(sys.argv[1]), "test"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_leaves_the_folder_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made/on/the/way"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    (folder / ".tmp-1234-case.npy").touch()
    (folder / "case.npy").touch()
    holder.kill()
    holder.communicate()
    with locked_folder(folder, "second"):
        assert not (folder / ".tmp-1234-case.npy").exists() and (folder / "case.npy").exists()
    assert "waiting" not in capsys.readouterr().out


def test_the_second_waits_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = HOLD.replace("time.sleep(60)", "sys.stdin.readline()")
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdin is not None and holder.stdout.readline() == "held\n"
    unsaid = [True]

    def said(*arguments: object, **options: object) -> None:
        unsaid.clear()
        assert holder.stdin is not None
        holder.stdin.close()  # the holder goes on only now: without a word this would wait for ever

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e2enet.common.locks.console.print", said)
        with locked_folder(tmp_path, "second"):
            assert not unsaid
    assert holder.wait() == 0
