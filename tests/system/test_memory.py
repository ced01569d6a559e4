"""Freed memory stays with the process, and available memory is the smallest of all limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from e2enet.system import memory
from e2enet.system.memory import (
    available_memory,
    forget_peak,
    is_out_of_memory,
    limited_memory,
    resident,
    resident_of,
    resident_peak,
)

PROGRAM = """
import resource, sys
import numpy as np
from e2enet.system.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.full(40_000_000, 1, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_taken_again_needs_no_new_pages() -> None:
    def page_faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert page_faults("keep") < page_faults("default") / 10


GIVEN_BACK = """
import numpy as np
from e2enet.system.memory import give_back_freed_memory, keep_freed_memory, resident
assert keep_freed_memory()
many = [np.full(1_000_000, 1, dtype=np.uint8) for _ in range(200)]
last = np.ones(10)  # above them, so that the heap cannot shrink
del many
before = resident()
assert give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a function of glibc")
def test_what_was_freed_and_kept_is_given_back_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000_000


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_available_memory_is_the_smallest_limit(tmp_path: Path) -> None:
    assert available_memory() > 0
    write(tmp_path, proc__meminfo="MemTotal: 64 kB\nMemFree: 10 kB\nMemAvailable:   48 kB\n")
    assert available_memory(tmp_path) == 48 * 1024
    # cgroup version 2: the parent (a SLURM job) has a limit, its own group (a step of the job) has none.
    own, parent = tmp_path / "sys/fs/cgroup/job/step", tmp_path / "sys/fs/cgroup/job"
    write(tmp_path, proc__self__cgroup="0::/job/step\n")
    for folder, limit, used in ((own, "max", "1000"), (parent, "9000", "5000")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(used)
        (folder / "memory.stat").write_text("anon 1000\ninactive_file 400\n")
    assert available_memory(tmp_path) == 9000 - 5000 + 400
    (parent / "memory.max").write_text("4000")
    assert available_memory(tmp_path) == 0


def test_available_memory_of_version_one(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo="MemFree: 48 kB\n", proc__self__cgroup="4:cpu,memory:/hidden/from/here\n")
    folder = tmp_path / "sys/fs/cgroup/memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("20000")
    (folder / "memory.usage_in_bytes").write_text("5000")
    (folder / "memory.stat").write_text("total_inactive_file 1000\n")
    assert available_memory(tmp_path) == 16000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of Linux")
def test_beyond_the_limit_taking_memory_is_an_error() -> None:
    with limited_memory(100 * 2**20):
        np.ones(40 * 2**20, np.uint8)
        with pytest.raises(MemoryError):
            np.empty(2**32, np.uint8)
        with pytest.raises(RuntimeError, match="allocate memory"):
            torch.empty(2**32, dtype=torch.uint8)
    assert np.empty(2**32, np.uint8).nbytes == 2**32  # reserved, never touched


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_the_peak_begins_anew_where_it_is_forgotten() -> None:
    np.ones(200 * 2**20, np.uint8)
    assert resident_peak() >= resident() + 150 * 2**20
    forget_peak()
    assert resident_peak() < resident() + 50 * 2**20
    np.ones(200 * 2**20, np.uint8)
    assert resident_peak() >= resident() + 150 * 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_memory_of_another_process() -> None:
    program = "import numpy as np; held = np.ones(300 * 2**20, np.uint8); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        size = resident_of(process.pid)
        assert size is not None and 300 * 2**20 < size < 500 * 2**20
        process.communicate(b"\n")
    assert resident_of(process.pid) is None


def test_without_proc_only_the_own_memory_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "Path", lambda path: Path("/nowhere") / path.removeprefix("/"))
    assert resident_of(1) is None
    assert resident() == resident_peak() > 10 * 2**20


def test_only_errors_of_memory_are_taken_for_its_end() -> None:
    errors: list[Exception] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("bad_alloc")]
    assert all(map(is_out_of_memory, errors))
    assert not any(map(is_out_of_memory, (ValueError("out of memory"), RuntimeError("shapes do not match"))))
