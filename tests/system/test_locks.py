"""A folder lock that one process holds at a time, and that the system releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from e2enet.system.locks import claimed_folder, is_held, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from e2enet.system.locks import locked_folder
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
        holder.stdin.close()  # the holder ends only now: without a message this would wait for ever

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e2enet.common.console.console.print", said)
        with locked_folder(tmp_path, "second"):
            assert not unsaid
    assert holder.wait() == 0


def test_a_folder_is_claimed_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2enet.system.locks.PATIENCE", 0.0)
    (tmp_path / ".tmp-1234-case.npy").touch()
    assert not is_held(tmp_path)
    with claimed_folder(tmp_path) as first:
        assert first and is_held(tmp_path) and not (tmp_path / ".tmp-1234-case.npy").exists()
        (tmp_path / ".tmp-5678-case.npy").touch()
        with claimed_folder(tmp_path) as second:
            assert not second
        assert (tmp_path / ".tmp-5678-case.npy").exists()  # the holder may still be writing it
    assert not is_held(tmp_path)


def test_readers_need_no_write_access_and_do_not_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed_folder(tmp_path):
        assert is_held(tmp_path)
    real = os.open

    def read_only(path: str | Path, flags: int, *more: int) -> int:
        """Answer as the system does on a read-only mount, and in another user's folder."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", read_only)
    assert not is_held(tmp_path)
    descriptor = real(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # another reader, who looks just now
    assert not is_held(tmp_path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert is_held(tmp_path)
    os.close(descriptor)
    assert not is_held(tmp_path) and not is_held(tmp_path / "missing") and not is_held(tmp_path / ".lock")


def test_a_forked_child_does_not_keep_the_folder_of_a_killed_parent(tmp_path: Path) -> None:
    program = (
        HOLD.replace("locked_folder", "claimed_folder")
        .replace(', "test"', "")
        .replace(
            '    print("held", flush=True)',
            # The child prints this: by then it has released the inherited lock.
            '    if os.fork() == 0:\n        print("held", flush=True)\n        time.sleep(30)\n        os._exit(0)\n',
        )
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import os{program}", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n" and is_held(tmp_path)
    try:
        holder.kill()
        holder.wait()
        assert not is_held(tmp_path)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)  # the child
        holder.stdout.close()
