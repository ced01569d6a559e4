"""Ranks of processes started together, and how the processes share items and results.

torchrun, SLURM's srun and Lightning's own launcher give each process its number in environment variables. Each process
runs the whole program. Only rank 0 does what a single process must do, such as writing a file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from e2enet.common.errors import InputError

Item = TypeVar("Item")
# How long processes wait for each other to start, and to finish their shares, which may take very different times.
START_PATIENCE = timedelta(minutes=5)
WORK_PATIENCE = timedelta(days=30)
# SLURM's names for a shell in an allocation. A command typed there is a single process.
SHELLS = ("bash", "interactive")


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that were started together.

    Attributes:
        rank: Its number; 0 is the first.
        world_size: The number of processes.
        local_rank: Its number on its machine, which selects its GPU.
        launcher: "torchrun" or "srun"; empty for a single process and for processes that Lightning starts itself.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = ""


def launched() -> Launch:
    """Read the place of this process from environment variables."""
    given = os.environ.get
    local_rank = int(given("LOCAL_RANK", "0"))
    if "RANK" in os.environ:
        return Launch(int(given("RANK", "0")), int(given("WORLD_SIZE", "1")), local_rank, "torchrun")
    # Check this before SLURM: under `srun --pty bash` every process has SLURM_PROCID=0, also those of Lightning.
    if "LOCAL_RANK" in os.environ:
        return Launch(local_rank, int(given("WORLD_SIZE", "1")), local_rank)
    if "SLURM_PROCID" in os.environ and given("SLURM_JOB_NAME") not in SHELLS:
        return Launch(
            int(given("SLURM_PROCID", "0")), int(given("SLURM_NTASKS", "1")), int(given("SLURM_LOCALID", "0")), "srun"
        )
    return Launch()


def planned_processes(trainer: Mapping[str, Any]) -> int:
    """Return the number of processes that a `trainer` section asks for: one per device of each machine."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        count = len(devices)
    elif devices in (-1, "auto", "-1"):
        import torch  # here, since most users of this module have one device and do not need torch

        count = 1 if trainer["accelerator"] == "cpu" else max(1, torch.accelerator.device_count())
    else:
        count = int(devices)
    return count * int(trainer["num_nodes"])


def is_rank_zero() -> bool:
    """Whether this process is the first or only one, which writes and prints."""
    return launched().rank == 0


def quiet_unless_rank_zero() -> None:
    """Let only rank 0 print; otherwise a log would hold every line once per process.

    Errors of all processes still go to stderr.
    """
    from e2enet.common.console import console  # here, so that the network does without its packages

    console.quiet = not is_rank_zero()
    logging.getLogger("e2enet").setLevel(logging.NOTSET if is_rank_zero() else logging.ERROR)


@dataclass(frozen=True)
class Team:
    """Processes that divide items among themselves; by default a single process.

    Attributes:
        rank: This process's number.
        size: The number of processes.
        group: Their torch process group, on gloo; None for a single process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def scatter(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of rank 0's items, which must pickle: every `size`-th of them.

        Each item is in exactly one part. All processes use the list of rank 0: the others may read a folder when it
        already holds new results.
        """
        if self.size == 1:
            return list(items)
        from torch import distributed

        content = [list(items)]
        distributed.broadcast_object_list(content, src=0, group=self.group)
        return content[0][self.rank :: self.size]

    def gather(self, value: Item) -> list[Item]:
        """Return the values of all processes, by rank, on each process; wait for the slowest.

        Raises:
            RuntimeError: another process ended without giving its value.
        """
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        try:
            distributed.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise RuntimeError("another of the processes ended before its work was done: see its own error") from error
        return values


SINGLE_PROCESS = Team()


def in_process_group() -> bool:
    """Whether this process has joined others in torch's process group."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def current_team() -> Team:
    """Return all processes of the current process group, as left by a training; a single process without one."""
    from torch import distributed

    if not in_process_group() or distributed.get_world_size() == 1:
        return SINGLE_PROCESS
    # A separate group: results are objects in main memory, and the training's group times out after half an hour.
    group = distributed.new_group(backend="gloo", timeout=WORK_PATIENCE)
    return Team(distributed.get_rank(), distributed.get_world_size(), group)


@contextmanager
def joined_team() -> Iterator[Team]:
    """Join all processes that torchrun or srun started with this one, for the block.

    Raises:
        InputError: the others do not connect, e.g. because srun was forgotten.
    """
    own = launched()
    if own.world_size == 1:
        yield SINGLE_PROCESS
        return
    from torch import distributed

    _name_meeting_point()
    try:
        distributed.init_process_group(
            "gloo", rank=own.rank, world_size=own.world_size, timeout=START_PATIENCE, init_method="env://"
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"process {own.rank} of {own.world_size} ({own.launcher}): cannot meet the others ({error}); start all of "
            "them together, with torchrun or srun"
        ) from error
    try:
        yield current_team()
    finally:
        distributed.destroy_process_group()


def _name_meeting_point() -> None:
    """Set address and port of rank 0, if torchrun has not, from SLURM's variables."""
    if "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        nodes = os.environ.get("SLURM_NODELIST", "127.0.0.1")
        os.environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(nodes)
    # Lightning's rule, so that MASTER_PORT sets both; jobs on one machine get different ports.
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:])))
