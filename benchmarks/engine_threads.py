"""The threads of `benchmarks.engine`: what a forward pass does on one thread alone, and a simulation of many cores.

A forward pass of active kernels only is run on one thread, with its work cut as for some number of threads. Each piece
is timed alone (processor time of the thread). All else is the serial part: Python between the pieces. Copies at the
ends of the network, which torch's threads share, are a column of their own. Of a layer's pieces, each simulated thread
takes the next one when it is done. So the simulated time of a layer is its serial part, the measured time of waking so
many threads, and the thread that is done last; the ends count as serial.

Not simulated: memory bandwidth and caches that cores share, and Python's lock, for which threads wait while they take
their pieces.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heapreplace
from typing import Any
from unittest import mock

from benchmarks.measuring import new_table, show
from benchmarks.network import make_network

CORES = (1, 2, 4, 8, 16, 32)
SAMPLES = 2**31  # bytes of volumes: larger batches are not run
SHORT = 1e-3


@dataclass
class LayerTimes:
    """Seconds of one layer in each run: all of it, its pieces together, and the last of the simulated threads."""

    total: list[float] = field(default_factory=list)
    pieces: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    woken: int = 0  # threads beside the calling one, in all hand-outs of a run

    @property
    def serial(self) -> float:
        return min(total - pieces for total, pieces in zip(self.total, self.pieces, strict=True))


def compare_threads(options: argparse.Namespace) -> None:
    """Print the serial part of passes, and the simulated time of a sample on 1 to 32 cores."""
    import torch

    from e2enet.network.dsff import init_masks
    from e2enet.network.engine.inference import CompactNetwork
    from e2enet.system.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = make_network("e2enet").eval()
    init_masks(network, options.densities[0], generator=torch.Generator().manual_seed(0))
    compact = CompactNetwork(network, choose=False)
    waking = {cores: waking_seconds(cores) for cores in CORES}
    serial = new_table(
        f"one thread, density {options.densities[0]:g}: ms of a pass",
        ("patch", "samples", "layers", "of < 1 ms", "serial", "serial, a layer", "ends", "in loops"),
        left=2,
    )
    cores = new_table(
        f"simulated, density {options.densities[0]:g}: ms for a sample, by cores",
        ("patch", "samples", *map(str, CORES)),
        left=2,
    )
    for patch in options.patches:
        size = tuple(map(int, patch.split("x")))
        most = max(1, SAMPLES // compact.sample_bytes(size))  # type: ignore[arg-type]
        for batch in (1, min(2, most)):
            times = timed_pass(compact, size, batch, 1, max(5, options.runs))  # the least counts
            ends = times.pop("").serial
            own = [layer.serial for layer in times.values()]
            serial.add_row(
                patch,
                str(batch),
                str(len(own)),
                str(sum(min(layer.pieces) < SHORT * batch for layer in times.values())),
                f"{1e3 * sum(own):.2f}",
                f"{1e3 * sum(own) / len(own):.3f}",
                f"{1e3 * ends:.2f}",
                f"{1e3 * sum(min(layer.pieces) for layer in times.values()):.1f}",
            )
        for name, limit in (("1", 1), ("as cores", most)):
            batches = {count: min(count, limit) for count in CORES}
            row = [
                f"{1e3 * simulated(timed_pass(compact, size, batch, n, options.runs), waking[n]) / batch:.1f}"
                for n, batch in batches.items()
            ]
            cores.add_row(patch, name if limit == 1 or limit >= CORES[-1] else f"{name}, at most {limit}", *row)
    show(serial)
    show(cores)
    woken = ", ".join(f"{1e6 * seconds:.0f} for {count}" for count, seconds in waking.items())
    print(f"waking a thread takes, in microseconds: {woken} (measured on this machine's cores, in an empty hand-out)")


def simulated(times: dict[str, LayerTimes], waking: float) -> float:
    """Return the seconds of a pass: serial parts, waking, and the last thread of each layer."""
    return sum(layer.serial + layer.woken * waking + min(layer.last) for layer in times.values())


def timed_pass(network: Any, size: Sequence[int], batch: int, cores: int, runs: int) -> dict[str, LayerTimes]:
    """Return the times of each layer of a pass whose work is cut for `cores` threads; the ends are the layer ""."""
    import torch

    x = torch.randn(batch, network.in_channels, *size)
    times = {"": LayerTimes(), **{step.name: LayerTimes() for step in network.steps}}
    with cut_for(cores) as pieces:
        network(x)
        for _ in range(runs):
            with timed_layers(network, times, pieces):
                start = time.thread_time()
                network(x)
                inside = sum(layer.total[-1] for name, layer in times.items() if name)
                times[""].total.append(time.thread_time() - start - inside)
            times[""].pieces.append(0.0)
            times[""].last.append(0.0)
    return times


@contextmanager
def cut_for(cores: int) -> Iterator[list[list[float]]]:
    """Cut the engine's work for so many threads, run the pieces one by one, and collect their seconds by hand-out."""
    from e2enet.network.engine import hand_out, sparse_layers

    found: list[list[float]] = []

    def run(work: Callable[..., Any], pieces: Sequence[tuple[int, ...]]) -> None:
        seconds = []
        for piece in pieces:
            start = time.thread_time()
            work(*piece)
            seconds.append(time.thread_time() - start)
        found.append(seconds)

    with (
        mock.patch.object(hand_out, "_threads", lambda: cores),
        mock.patch.object(hand_out, "run_in_threads", run),
        mock.patch.object(sparse_layers, "run_in_threads", run),
    ):
        yield found


@contextmanager
def timed_layers(network: Any, times: dict[str, LayerTimes], pieces: list[list[float]]) -> Iterator[None]:
    """Add each layer's times to `times` while the network runs."""
    from e2enet.network.engine import hand_out

    plain = [step.layer for step in network.steps]

    def timed(name: str, layer: Callable[..., Any]) -> Callable[..., Any]:
        def run(sources: Any) -> Any:
            pieces.clear()
            start = time.thread_time()
            found = layer(sources)
            own = times[name]
            own.total.append(time.thread_time() - start)
            own.pieces.append(sum(map(sum, pieces)))
            own.last.append(sum(last_thread(seconds, hand_out._threads()) for seconds in pieces))
            own.woken = sum(min(len(seconds), hand_out._threads()) - 1 for seconds in pieces)
            return found

        return run

    for step in network.steps:
        step.layer = timed(step.name, step.layer)
    try:
        yield
    finally:
        for step, layer in zip(network.steps, plain, strict=True):
            step.layer = layer


def last_thread(pieces: Sequence[float], threads: int) -> float:
    """Return when the last of the threads is done that take these pieces in turn."""
    done = [0.0] * threads
    for seconds in pieces:
        heapreplace(done, done[0] + seconds)
    return max(done)


def waking_seconds(threads: int) -> float:
    """Return what waking one of so many threads takes, in an empty hand-out on this machine."""
    import torch

    from e2enet.network.compiled import run_in_threads

    if threads == 1:
        return 0.0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = []
        for _ in range(200):
            start = time.perf_counter()
            run_in_threads(lambda _: None, [(number,) for number in range(threads)])
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return statistics.median(seconds) / (threads - 1)
