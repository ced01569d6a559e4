"""What `python -m benchmarks.gpu` runs: sizes, device, precisions, and how they are given on a command line."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.network import STRIDES

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DENSITY, GROUP = 0.2, 16  # S = 0.8

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Network:
    """A network of the work: one input channel, masks apart."""

    strides: Sequence[Triple]
    base_features: int
    num_classes: int


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    patch, batch: of `count`, `compile`, `step`, `predict`, and the patch of `batch`. runs: timed steps. parity:
    networks and inputs (B, D, H, W), by name. train: input (B, D, H, W) of `train`, `resume` and `ddp`; train_steps and
    resume_steps: of these. image: (D, H, W) of the predicted scan. largest_batch: the largest that `batch` tries.
    """

    network: Network
    patch: Triple
    batch: int
    runs: int
    parity: dict[str, tuple[Network, tuple[int, ...]]]
    train: tuple[int, ...]
    train_steps: int
    resume_steps: int
    image: Triple
    largest_batch: int


SHALLOW = Network([(1, 2, 2), (2, 2, 2)], 8, 3)
FULL = Sizes(
    network=Network(STRIDES, 48, 16),
    patch=(128, 128, 128),
    batch=2,
    runs=7,
    parity={
        "shallow": (SHALLOW, (2, 8, 16, 24)),
        "odd": (Network([(1, 2, 2), (3, 1, 2), (1, 2, 1)], 20, 5), (3, 15, 20, 12)),
        "as trained": (Network(STRIDES, 48, 16), (2, 64, 64, 64)),
    },
    train=(2, 32, 64, 64),
    train_steps=200,
    resume_steps=16,
    image=(400, 512, 512),
    largest_batch=64,
)
SMALL = Sizes(
    network=SHALLOW,
    patch=(8, 16, 16),
    batch=2,
    runs=2,
    parity={"shallow": (SHALLOW, (2, 4, 8, 12)), "one plane": (Network([(1, 2, 2)], 20, 2), (1, 1, 6, 10))},
    train=(2, 4, 16, 16),
    train_steps=16,
    resume_steps=10,
    image=(13, 20, 30),
    largest_batch=4,
)


@dataclass(frozen=True)
class Work:
    """Sizes, device, precisions, compute capabilities of `compile`, and the time for all of it.

    deadline: when it is over, by time.monotonic().
    """

    sizes: Sizes
    device: torch.device
    precisions: Sequence[str] = tuple(PRECISIONS)
    capabilities: Sequence[int] = (80, 90, 100)
    seconds: float = math.inf
    deadline: float = math.inf

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def seconds_left(self) -> float:
        """Return the seconds until the time is over, from 1 to those of a day."""
        return min(max(1.0, self.deadline - time.monotonic()), 86400.0)

    def arguments(self, seconds: float) -> list[str]:
        """Return the command line of a process that does the same within `seconds`."""
        small = ["--small"] if self.sizes.network == SMALL.network else []
        given = {
            "--patch": map(str, self.sizes.patch),
            "--batch": [str(self.sizes.batch)],
            "--device": [self.device.type],
            "--precisions": self.precisions,
            "--capabilities": map(str, self.capabilities),
            "--minutes": [f"{seconds / 60:.3f}"],
        }
        return [*small, *(word for name, values in given.items() for word in (name, *values))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what describes the work, for `read_work`."""
    parser.add_argument("--small", action="store_true", help="sizes of seconds, which a CPU can run")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--capabilities", nargs="+", type=int, help="of GPUs, for `compile`: 90 is an H100")
    parser.add_argument("--patch", nargs=3, type=int, metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--minutes", type=float, help="for everything; default: 8 with a GPU, 60 without")


def read_work(options: argparse.Namespace) -> Work:
    """Return the work that the options of `add_arguments` describe.

    Without `--capabilities`, kernels are compiled for the GPU that is there, or for those of 80, 90 and 100.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here; expected --device cpu")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sizes = SMALL if options.small else FULL
    sizes = replace(sizes, patch=tuple(options.patch or sizes.patch), batch=options.batch or sizes.batch)
    capabilities = options.capabilities
    if capabilities is None:
        major, minor = torch.cuda.get_device_capability() if device.type == "cuda" else (0, 0)
        capabilities = [10 * major + minor] if major else [80, 90, 100]
    seconds = 60 * (options.minutes if options.minutes is not None else 8 if device.type == "cuda" else 60)
    return Work(sizes, device, tuple(options.precisions), tuple(capabilities), seconds, time.monotonic() + seconds)
