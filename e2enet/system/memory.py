"""Memory of the process: how it is allocated, how much is used, and how much is still available."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # from glibc's malloc.h
# Out-of-memory messages of torch and of libraries below it, in lower case.
OUT_OF_MEMORY = (
    *("out of memory", "allocate memory", "bad_alloc", "alloc_failed", "could not create a"),
    *("can't start new thread", "failed to map segment"),
)


def keep_freed_memory() -> bool:
    """Let malloc keep freed tensor memory instead of returning it to the system and requesting it again.

    glibc serves large requests with new pages, which the system clears at first access. A network on the CPU frees and
    allocates the same gigabytes at every step, so this clearing is a fifth of its time (docs/performance.md). Call this
    once per process, before large tensors are created. The price: the process keeps memory that it once had.

    Return False if the C library has no such setting (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, largest))


def give_back_freed_memory() -> bool:
    """Return whole pages of freed memory from malloc to the system; False if the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return bool(trim and trim(0))


def empty_caches() -> None:
    """Release all unused memory of system and GPUs, so that work after an out-of-memory error starts as if anew."""
    gc.collect()  # an error's frames form reference cycles
    if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_initialized():
        cuda.empty_cache()
    give_back_freed_memory()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, in Python, NumPy, torch or a library below it."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | ImportError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that new processes can take before the machine swaps or the job's cgroup kills one of them.

    On Linux this is the smaller of the kernel's available memory and what the limits of the cgroups leave (v1 or v2,
    as set by SLURM, Docker or Kubernetes). Elsewhere it is half of the machine's memory. `root` is the folder of /proc
    and /sys, for tests.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    machine = int(fields.get("MemAvailable", fields["MemFree"]).split()[0]) * 1024
    return max(0, min([machine, *_left_by_cgroups(root)]))


def resident() -> int:
    """Return the resident bytes of this process; outside Linux, the most that it has held."""
    return _status("VmRSS") or _peak_by_getrusage()


def resident_of(process: int) -> int | None:
    """Return the resident bytes of another process by its id; None if it has ended, and outside Linux."""
    return _status("VmRSS", process)


def resident_peak() -> int:
    """Return the most bytes that this process has held since it began, or since `forget_peak`."""
    # getrusage on Linux also counts the parent that started this process.
    return _status("VmHWM") or _peak_by_getrusage()


def forget_peak() -> None:
    """Reset the value of `resident_peak`, if the system can (Linux)."""
    with suppress(OSError):  # missing or not allowed: the peak is not reset
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Limit the process to `more` further bytes during the block; do nothing outside Linux.

    Beyond the limit the process gets an error (MemoryError, torch's RuntimeError) instead of being killed by the system
    without a message.
    """
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
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # no such process, or no /proc
        lines = []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _peak_by_getrusage() -> int:
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """Yield limit minus use for every cgroup of this process; file pages, which can be dropped, do not count as use."""
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
        # Any parent may have a limit; inside a container only the top cgroup may be visible.
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
        return  # no such limit, or a cgroup that this process may not read
    if limit != "max":
        yield int(limit) - used + int(statistics.get(droppable_name, 0))
