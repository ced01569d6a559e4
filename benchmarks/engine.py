"""Forward pass of the compact engine against the masked dense network and nnU-Net's U-Net; its layers one by one.

    python -m benchmarks.engine                                 # everything, some minutes
    python -m benchmarks.engine --parts networks --densities 0.2 0.1 --precisions float32 bfloat16
    python -m benchmarks.engine --parts layers --figure roofline.png

Work: base 48, six levels, strides (1,2,2) then four (2,2,2), 16 classes, a patch of 32 x 96 x 96, batch 1, the
full-resolution output only, as in prediction. `networks`: every contender in a process of its own, in turns, medians of
warm runs and the peak memory of the process; `e2enet` is the masked network as torch runs it (channels-last, with
`keep_freed_memory`), `compact` the engine with active kernels only, `compact-auto` with the fastest way of each layer,
which each process measures in its first run. In bfloat16 torch's networks run under autocast, in which `e2enet` keeps
to float32 where the processor has no AMX (`e2enet-bfloat16`: it does not), and `compact-auto` may choose it.
`layers`: each kind of convolution alone, by the engine over densities and by torch (channels-last) in both precisions,
and the density where the engine takes as long as the faster one; the figure shows operations a second over operations
per byte beside what the machine does at the most (products of a tile that stays in the cache; copying volumes that do
not).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.measuring import median_seconds, run_worker
from benchmarks.network import PRECISIONS, make_network, processor

PARTS = ("networks", "layers")
CONTENDERS = ("e2enet", "compact", "compact-auto", "plainconvunet")
FORCED = "e2enet-bfloat16"
# Convolutions of the network (channels in, out, D, H, W): one per level of the grid and of the encoder.
LAYERS = {
    "node of level 0": (96, 48, 32, 96, 96),
    "node of level 1": (240, 96, 32, 48, 48),
    "node of level 2": (480, 192, 16, 24, 24),
    "node of level 3": (832, 320, 8, 12, 12),
    "node of level 4": (960, 320, 4, 6, 6),
}
LAYER_DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    import torch

    print("command: python -m benchmarks.engine", *sys.argv[1:])
    print(f"machine: {processor()}, torch {torch.__version__}")
    if "networks" in options.parts:
        for threads, patch, precision in product(options.threads, options.patches, options.precisions):
            compare_networks(options, threads, patch, precision)
    if "layers" in options.parts:
        compare_layers(options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.3, 0.2, 0.1])
    parser.add_argument("--patches", nargs="+", default=["32x96x96"], metavar="DxHxW")
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="processes per contender, in turns")
    parser.add_argument("--figure", type=Path, help="draw the roofline there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare_networks(options: argparse.Namespace, threads: int, patch: str, precision: str) -> None:
    """Print a table of forward times and peaks, beside the masked network's and the U-Net's."""
    own = [*CONTENDERS[:3], *([FORCED] if precision == "bfloat16" else [])]
    contenders = [(name, density) for name in own for density in options.densities]
    if find_spec("dynamic_network_architectures"):
        contenders.append((CONTENDERS[3], 1.0))
    found: dict[tuple[str, float], list[dict[str, float]]] = {contender: [] for contender in contenders}
    for _ in range(options.rounds):
        for name, density in contenders:
            found[name, density].append(measured(options, name, density, threads, patch, precision))
    seconds = {key: statistics.median(row["seconds"] for row in rows) for key, rows in found.items()}
    memory = {key: statistics.median(row["gib"] for row in rows) for key, rows in found.items()}
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"forward, {precision}, patch {patch}, {threads} threads")
    for column in ("network", "density", "s", "peak GiB", "time / e2enet's", "time / U-Net's", "peak / e2enet's"):
        table.add_column(column, justify="left" if column == "network" else "right")
    unet = seconds.get((CONTENDERS[3], 1.0))
    for (name, density), value in seconds.items():
        base = ("e2enet", density)
        ours = name.startswith("compact") or name == FORCED
        table.add_row(
            name,
            f"{density:g}",
            f"{value:.3f}",
            f"{memory[name, density]:.2f}",
            f"{value / seconds[base]:.2f}" if ours else "",
            f"{value / unet:.2f}" if unet and name != CONTENDERS[3] else "",
            f"{memory[name, density] / memory[base]:.2f}" if ours else "",
        )
    Console(width=120).print(table)


def measured(
    options: argparse.Namespace, name: str, density: float, threads: int, patch: str, precision: str
) -> dict[str, float]:
    """Measure one contender in a fresh process, which knows of no choices that were made before."""
    arguments = ["--worker", name, "--densities", str(density), "--threads", str(threads), "--patches", patch]
    with TemporaryDirectory() as cache:
        return run_worker(
            "benchmarks.engine",
            [*arguments, "--precisions", precision, "--runs", str(options.runs)],
            environment={"XDG_CACHE_HOME": cache},
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a forward pass and the peak memory of this process in GiB."""
    import torch

    from e2enet.common.memory import forget_peak, give_back_freed_memory, keep_freed_memory, resident_peak
    from e2enet.network.dsff import init_masks
    from e2enet.network.engine.inference import CompactNetwork

    torch.manual_seed(0)
    torch.set_num_threads(options.threads[0])
    if options.worker != "plainconvunet":
        keep_freed_memory()
    half = options.precisions[0] == "bfloat16"
    network: Any = make_network("plainconvunet" if options.worker == "plainconvunet" else "e2enet").eval()
    if options.worker == "plainconvunet":
        network.decoder.deep_supervision = False
    else:
        init_masks(network, options.densities[0], generator=torch.Generator().manual_seed(0))
    if options.worker.startswith("compact"):
        network = CompactNetwork(network, choose=options.worker == "compact-auto", bfloat16=half)
        give_back_freed_memory()  # as predict.py does
    x = torch.randn(1, 1, *map(int, options.patches[0].split("x")))
    forget_peak()
    pays = mock.patch("e2enet.network.e2enet.half_precision_pays_on_cpu", lambda: True)
    with torch.no_grad(), torch.autocast("cpu", enabled=half), pays if options.worker == FORCED else nullcontext():
        seconds = median_seconds(lambda: network(x), options.runs)
    return {"seconds": seconds, "gib": resident_peak() / 2**30}


def compare_layers(options: argparse.Namespace) -> None:
    """Print times of single convolutions over densities, and where the engine and torch are even."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from e2enet.common.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(options.threads[0])
    table = Table(title=f"one convolution, {options.threads[0]} threads: ms by density")
    for column in ("layer", *(f"{density:g}" for density in LAYER_DENSITIES), "torch", "bfloat16", "even at"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    points = []
    for name, sizes in LAYERS.items():
        seconds = {density: sparse_seconds(sizes, density, options.runs) for density in LAYER_DENSITIES}
        dense, half = (dense_seconds(sizes, options.runs, bfloat16) for bfloat16 in (False, True))
        even = crossover(seconds, min(dense, half))
        table.add_row(
            f"{name}: {sizes[0]} -> {sizes[1]}",
            *(f"{value * 1000:.1f}" for value in seconds.values()),
            f"{dense * 1000:.1f}",
            f"{half * 1000:.1f}",
            "always faster" if even is None else f"{even:.2f}",
        )
        points += [(name, density, *work_of(sizes, density), value) for density, value in seconds.items()]
    Console(width=140).print(table)
    if options.figure:
        draw_roofline(points, options)


def crossover(seconds: dict[float, float], dense: float) -> float | None:
    """The density at which the engine takes as long as `dense`, linear between the measured ones; None: beyond 1."""
    densities = list(seconds)
    for low, high in pairwise(densities):
        if seconds[low] <= dense < seconds[high]:
            return low + (high - low) * (dense - seconds[low]) / (seconds[high] - seconds[low])
    return None if seconds[densities[-1]] <= dense else densities[0]


def layer_of(sizes: tuple[int, ...], density: float) -> tuple[Any, Any]:
    """The engine's convolution with shift 3 and norm, and a source of noise."""
    from e2enet.network.engine.kernels import Kernels
    from e2enet.network.engine.layers import Convolution
    from e2enet.network.engine.signals import Signal
    from e2enet.network.shift import channel_shifts

    channels, outputs, depth, height, width = sizes
    draw = np.random.default_rng(0)
    mask = draw.random((outputs, channels)) < density
    weights = draw.standard_normal((outputs, channels, 1, 3, 3), dtype=np.float32)
    shifts = np.array(channel_shifts(channels, 3))
    norm = np.ones(outputs, np.float32), np.zeros(outputs, np.float32), 1e-5, 0.01
    source = Signal.of(draw.standard_normal((channels, height, width, depth), dtype=np.float32))
    kernels = Kernels.of_convolution(mask, shifts, (1, 3, 3))
    return Convolution(kernels, kernels.pack(weights), (1, 1, 1), (1, 1), norm), source


def sparse_seconds(sizes: tuple[int, ...], density: float, runs: int) -> float:
    layer, source = layer_of(sizes, density)
    return median_seconds(lambda: layer([source]), runs)


def dense_seconds(sizes: tuple[int, ...], runs: int, bfloat16: bool) -> float:
    """The same block as torch runs it in the masked network: shift, convolution, norm and activation."""
    import torch

    from e2enet.network.blocks import ConvBlock

    channels, outputs, *size = sizes
    block = ConvBlock(channels, outputs).eval()
    x = torch.randn(1, channels, *size).contiguous(memory_format=torch.channels_last_3d)
    if bfloat16:
        x = x.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", enabled=bfloat16):
        return median_seconds(lambda: block(x), runs)


def work_of(sizes: tuple[int, ...], density: float) -> tuple[float, float]:
    """Operations of the active kernels, and bytes of the volumes that are read and written."""
    channels, outputs, *size = sizes
    voxels = float(np.prod(size))
    return 18 * density * channels * outputs * voxels, 4 * (channels + outputs) * voxels


def draw_roofline(points: list[tuple[Any, ...]], options: argparse.Namespace) -> None:
    """Operations a second over operations per byte of every layer and density, under the machine's two limits."""
    from matplotlib.figure import Figure

    from e2enet.common.files import atomic_path

    peak, bandwidth = peak_operations(options), copy_bandwidth(options)
    print(f"machine at the most: {peak / 1e9:.0f} GFLOP/s in the cache, {bandwidth / 1e9:.1f} GB/s of copies")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in LAYERS:
        rows = [
            (operations / volume, operations / value) for own, _, operations, volume, value in points if own == name
        ]
        axes.loglog(*zip(*rows, strict=True), "o-", label=name)
    intensity = np.geomspace(1, 3000, 100)
    axes.loglog(intensity, np.minimum(peak, intensity * bandwidth), "k--", label="limits of the machine")
    axes.set_xlabel("operations of active kernels per byte read or written")
    axes.set_ylabel("operations per second")
    axes.set_title(f"density {LAYER_DENSITIES[0]:g} to {LAYER_DENSITIES[-1]:g}, left to right", fontsize="medium")
    axes.legend(fontsize="small")
    with atomic_path(options.figure) as temporary:
        figure.savefig(temporary, dpi=120)


def peak_operations(options: argparse.Namespace) -> float:
    """Operations a second of the innermost loop on a tile of 8 channels, which stays in the first cache."""
    import ctypes
    from concurrent.futures import ThreadPoolExecutor

    from e2enet.network.engine.microkernels import COLUMNS, ROWS, plane_convolution
    from e2enet.network.engine.signals import empty_volume
    from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES

    channels, kernels, calls = 8, 20_000, 20
    rows, columns = ROWS + 2, COLUMNS + 2
    loop = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(plane_convolution((3, 3), (1, 1)).address)
    offsets = np.arange(kernels, dtype=np.int64) % channels * rows * columns * VECTOR_BYTES
    weights = np.full((kernels, 9), 1e-3, np.float32)

    def work(_: int) -> None:
        tile, sums = empty_volume((channels, rows, columns, LANES)), empty_volume((ROWS, COLUMNS, LANES))
        tile[:] = 1
        for _ in range(calls):
            addresses = tile.ctypes.data, offsets.ctypes.data, weights.ctypes.data
            loop(*addresses, kernels, columns * VECTOR_BYTES, sums.ctypes.data)

    threads = options.threads[0]
    with ThreadPoolExecutor(threads) as pool:
        seconds = median_seconds(lambda: list(pool.map(work, range(threads))), options.runs)
    return threads * calls * kernels * 18 * ROWS * COLUMNS * LANES / seconds


def copy_bandwidth(options: argparse.Namespace) -> float:
    """Bytes a second, read and written, of copying 512 MiB with torch."""
    import torch

    source = torch.ones(2**27)
    target = torch.empty_like(source)
    return 2 * 4 * 2**27 / median_seconds(lambda: target.copy_(source), options.runs)


if __name__ == "__main__":
    main()
