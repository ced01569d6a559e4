"""How the process asks the operating system for memory, what it holds, and how much it may still ask for."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let malloc keep what tensors free, instead of giving it back to the system and asking for it anew.

    glibc serves large requests with fresh pages, which the system clears at first touch. A network on the CPU frees and
    takes the same gigabytes at every step, so this clearing is a fifth of its time (docs/performance.md). Call it once
    per process, before large tensors are made. The price: memory once taken stays with the process.

    Returns False where the C library has no such setting (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, largest))


def give_back_freed_memory() -> bool:
    """Give the system what malloc kept of freed memory: whole pages of it. Returns False where the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return bool(trim and trim(0))


def empty_caches() -> None:
    """Give back all memory that nothing holds any more, the system's and that of GPUs: after an error for want of it,
    what follows starts as in a new process."""
    gc.collect()  # an error's frames hold one another in cycles
    if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_initialized():
        cuda.empty_cache()
    give_back_freed_memory()


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that new processes can take before the machine swaps or the job's cgroup kills one of them.

    On Linux the smaller of what the kernel calls available and what the limits of the cgroups (v1 or v2; as
    set by SLURM, Docker, Kubernetes) leave; elsewhere half of the machine's memory. `root` is where /proc and
    /sys are, for tests.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    machine = int(fields.get("MemAvailable", fields["MemFree"]).split()[0]) * 1024
    return max(0, min([machine, *_left_by_cgroups(root)]))


def resident(process: int | str = "self") -> int:
    """Bytes of memory that this process, or another by its id, holds; where only the own peak so far can be told (not
    Linux), that."""
    return _status("VmRSS", process) or _peak_by_getrusage()


def resident_peak() -> int:
    """The most bytes that this process has held since it began, or since `forget_peak`."""
    # getrusage on Linux also counts the parent that started this process.
    return _status("VmHWM") or _peak_by_getrusage()


def forget_peak() -> None:
    """Let `resident_peak` begin anew, where the system can (Linux)."""
    with suppress(OSError):  # not there, or not allowed: the peak stays that since the process began
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """For the block, let the process take so many further bytes and no more: it gets an error (MemoryError, torch's
    RuntimeError) where the system would end it without a word. Elsewhere than on Linux, nothing."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([(_status("VmData") or 0) + more, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _status(field: str, process: int | str = "self") -> int | None:
    path = Path(f"/proc/{process}/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _peak_by_getrusage() -> int:
    import resource  # not on Windows, where there is nothing else to ask

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """Limit minus use of every cgroup that this process is in; file pages, which can be dropped, are no use."""
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for entry in entries:
        _, controllers, place = entry.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A limit may be set on any parent; within a container the own place may not be visible, only the top.
        below = base / place.lstrip("/")
        for folder in (below, *below.parents):
            if not folder.is_relative_to(base):
                break
            yield from _left_in(folder, *names)


def _left_in(folder: Path, limit_name: str, use_name: str, droppable_name: str) -> Iterator[int]:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / use_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return  # no such limit, or a place that this process may not see
    if limit != "max":
        yield int(limit) - used + int(statistics.get(droppable_name, 0))
