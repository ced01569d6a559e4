"""Several processes at one piece of work: which of them this one is, and how they share items and results.

torchrun, SLURM's srun and Lightning's own launcher number the processes that they start in the environment. Each of
them runs the whole program; what only one of them may do, such as writing a file, is the first one's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from e2enet.common.console import console
from e2enet.common.errors import InputError

Item = TypeVar("Item")
# How long processes wait for each other to start, and to finish their shares, which may differ by many cases.
START_PATIENCE = timedelta(minutes=5)
WORK_PATIENCE = timedelta(days=30)
# Names that SLURM gives to a shell in an allocation. A command that is typed there is one process.
SHELLS = ("bash", "interactive")


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together.

    Attributes:
        rank: Its number; 0 is the first.
        world_size: How many there are.
        local_rank: Its number on its machine, which chooses its GPU.
        launcher: "torchrun" or "srun"; empty for a process alone, and for those that Lightning starts itself.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = ""


def launched() -> Launch:
    """What the environment says about this process."""
    given = os.environ.get
    local_rank = int(given("LOCAL_RANK", "0"))
    if "RANK" in os.environ:
        return Launch(int(given("RANK", "0")), int(given("WORLD_SIZE", "1")), local_rank, "torchrun")
    # Before SLURM: below `srun --pty bash` every process has SLURM_PROCID=0, those that Lightning starts too.
    if "LOCAL_RANK" in os.environ:
        return Launch(local_rank, int(given("WORLD_SIZE", "1")), local_rank)
    if "SLURM_PROCID" in os.environ and given("SLURM_JOB_NAME") not in SHELLS:
        return Launch(
            int(given("SLURM_PROCID", "0")), int(given("SLURM_NTASKS", "1")), int(given("SLURM_LOCALID", "0")), "srun"
        )
    return Launch()


def planned_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes the `trainer` section of a config asks for: one for each device of each machine."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        count = len(devices)
    elif devices in (-1, "auto", "-1"):
        import torch  # here: most of what asks for ranks has one device and no need of torch

        count = 1 if trainer["accelerator"] == "cpu" else max(1, torch.accelerator.device_count())
    else:
        count = int(devices)
    return count * int(trainer["num_nodes"])


def is_rank_zero() -> bool:
    """Whether this process is the first, or only, one: the one that writes and prints."""
    return launched().rank == 0


def quiet_unless_rank_zero() -> None:
    """Let the first process alone print, or a log would hold every line as often as there are processes.

    Errors still come from all: they go to stderr.
    """
    console.quiet = not is_rank_zero()


@dataclass(frozen=True)
class Team:
    """Processes that divide items among themselves; by itself, a process alone.

    Attributes:
        rank: This process's number.
        size: How many there are.
        group: torch's process group of theirs, on gloo; None for a process alone.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def scatter(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of the first one's items, which must pickle: every `size`-th of them.

        Each item is in one part. The first one's list counts for all, since the others may look at a folder when
        results are in it already.
        """
        if self.size == 1:
            return list(items)
        from torch import distributed

        content = [list(items)]
        distributed.broadcast_object_list(content, src=0, group=self.group)
        return content[0][self.rank :: self.size]

    def gather(self, value: Item) -> list[Item]:
        """The values of all processes, in order, on each; waits for the slowest.

        Raises:
            RuntimeError: where another process has ended without giving its own.
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
    """All processes of the process group that this one is in, as a training leaves it; alone without one."""
    from torch import distributed

    if not in_process_group() or distributed.get_world_size() == 1:
        return SINGLE_PROCESS
    # A group of its own: results are objects in main memory, and the training's gives up after half an hour.
    group = distributed.new_group(backend="gloo", timeout=WORK_PATIENCE)
    return Team(distributed.get_rank(), distributed.get_world_size(), group)


@contextmanager
def joined_team() -> Iterator[Team]:
    """All processes that torchrun or srun started with this one, for the block.

    Raises:
        InputError: where the others do not come, as when srun was forgotten.
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
    """Address and port of the first process, which torchrun gives and SLURM's variables imply."""
    if "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        nodes = os.environ.get("SLURM_NODELIST", "127.0.0.1")
        os.environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(nodes)
    # The rule of Lightning, so that one variable moves both: jobs on one machine have different numbers.
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:])))
