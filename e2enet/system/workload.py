"""Number of worker processes for a set of cases: limited by the cores, and by memory for the largest cases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from e2enet.common.errors import InputError
from e2enet.system.memory import available_memory

PROCESS_BYTES = 400 * 2**20  # a worker's interpreter and libraries, measured
SHARE_OF_MEMORY = 0.9  # the rest is for other programs


@dataclass(frozen=True)
class Workload:
    """`workers` processes (0: this process) that need at most `memory` bytes together, of `free_memory`."""

    workers: int
    memory: int
    free_memory: int

    def __str__(self) -> str:
        where = f"{self.workers} processes" if self.workers > 1 else "1 process" if self.workers else "this process"
        return f"{where}, up to {gigabytes(self.memory)} of memory ({gigabytes(self.free_memory)} free)"


def fit_workers(needs: Mapping[str, int], requested: int | None = None, *, small: bool = False) -> Workload:
    """Return the workers for cases that need `needs` bytes each while they are processed.

    With `requested` None, there are as many workers as cores, and as fit into memory if the largest cases are processed
    at once. `small` work is then done in this process, since a process takes seconds to start.

    Raises:
        InputError: not even the largest case fits, or not as many workers as requested.
    """
    free = available_memory()
    largest_first = sorted(needs.values(), reverse=True)

    def memory(workers: int) -> int:
        return workers * PROCESS_BYTES + sum(largest_first[: max(workers, 1)])

    most = max(needs, key=lambda case: needs[case])
    if memory(0) > free * SHARE_OF_MEMORY:
        raise InputError(
            f"case {most} takes about {gigabytes(memory(0))} of memory, {gigabytes(free)} are free: "
            "free some, or use a machine with more"
        )
    if requested is None and small:
        return Workload(0, memory(0), free)
    fitting = [count for count in range(1, len(needs) + 1) if memory(count) <= free * SHARE_OF_MEMORY]
    if requested is None:
        count = min(max(fitting, default=0), available_cores())
        return Workload(count, memory(count), free)
    count = min(requested, len(needs))
    if count > max(fitting, default=0):
        raise InputError(
            f"{count} processes take up to {gigabytes(memory(count))} of memory, {gigabytes(free)} are free: "
            f"at most {max(fitting, default=0)} expected, or null for as many as fit"
        )
    return Workload(count, memory(count), free)


def available_cores() -> int:
    """Return the number of cores that this process may use: those given by SLURM or taskset, not all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gigabytes(size: float) -> str:
    """Format bytes for people: 3.2 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
