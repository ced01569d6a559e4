"""The layers of `benchmarks.engine`: each kind of convolution alone, over densities, beside torch and the roofline."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import median_seconds, new_table, show

# Convolutions of the network (channels in, out, D, H, W): one per level of the grid and of the encoder.
LAYERS = {
    "node of level 0": (96, 48, 32, 96, 96),
    "node of level 1": (240, 96, 32, 48, 48),
    "node of level 2": (480, 192, 16, 24, 24),
    "node of level 3": (832, 320, 8, 12, 12),
    "node of level 4": (960, 320, 4, 6, 6),
}
LAYER_DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def compare_layers(threads: int, runs: int, figure: Path | None) -> None:
    """Print times of single convolutions over densities and the crossover with torch; draw the roofline."""
    import torch

    from e2enet.system.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    table = new_table(
        f"one convolution, {threads} threads: ms by density",
        ("layer", *(f"{density:g}" for density in LAYER_DENSITIES), "torch", "bfloat16", "even at"),
    )
    points = []
    for name, sizes in LAYERS.items():
        seconds = {density: sparse_seconds(sizes, density, runs) for density in LAYER_DENSITIES}
        dense, half = (dense_seconds(sizes, runs, bfloat16) for bfloat16 in (False, True))
        even = crossover(seconds, min(dense, half))
        table.add_row(
            f"{name}: {sizes[0]} -> {sizes[1]}",
            *(f"{value * 1000:.1f}" for value in seconds.values()),
            f"{dense * 1000:.1f}",
            f"{half * 1000:.1f}",
            "always faster" if even is None else f"{even:.2f}",
        )
        points += [(name, density, *work_of(sizes, density), value) for density, value in seconds.items()]
    show(table)
    if figure:
        draw_roofline(points, figure, threads, runs)


def crossover(seconds: dict[float, float], dense: float) -> float | None:
    """Return the density at which the engine takes as long as `dense`, interpolated linearly; None: above 1."""
    densities = list(seconds)
    for low, high in pairwise(densities):
        if seconds[low] <= dense < seconds[high]:
            return low + (high - low) * (dense - seconds[low]) / (seconds[high] - seconds[low])
    return None if seconds[densities[-1]] <= dense else densities[0]


def layer_of(sizes: tuple[int, ...], density: float) -> tuple[Any, Any]:
    """Return the engine's convolution with shift 3 and norm, and a noise source."""
    from e2enet.network.engine.active import ActiveKernels
    from e2enet.network.engine.lazy_volumes import LazyVolumes
    from e2enet.network.engine.sparse_layers import Convolution
    from e2enet.network.shift import channel_shifts

    channels, outputs, depth, height, width = sizes
    draw = np.random.default_rng(0)
    mask = draw.random((outputs, channels)) < density
    weights = draw.standard_normal((outputs, channels, 1, 3, 3), dtype=np.float32)
    shifts = np.array(channel_shifts(channels, 3))
    norm = np.array([[1], [0]], np.float32).repeat(outputs, axis=1), 1e-5, 0.01
    source = LazyVolumes.of(draw.standard_normal((1, channels, height, width, depth), dtype=np.float32))
    kernels = ActiveKernels.of_convolution(mask, shifts, (1, 3, 3))
    return Convolution(kernels, kernels.gather_weights(weights), (1, 1, 1), (1, 1), norm), source


def sparse_seconds(sizes: tuple[int, ...], density: float, runs: int) -> float:
    layer, source = layer_of(sizes, density)
    return median_seconds(lambda: layer([source]), runs)


def dense_seconds(sizes: tuple[int, ...], runs: int, bfloat16: bool) -> float:
    """Time the same block as torch runs it in the masked network: shift, convolution, norm and activation."""
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
    """Return the operations of the active kernels, and the bytes of the volumes read and written."""
    channels, outputs, *size = sizes
    voxels = float(np.prod(size))
    return 18 * density * channels * outputs * voxels, 4 * (channels + outputs) * voxels


def draw_roofline(points: list[tuple[Any, ...]], path: Path, threads: int, runs: int) -> None:
    """Draw operations per second over operations per byte, per layer and density, under the machine's two limits."""
    from matplotlib.figure import Figure

    from e2enet.common.files import atomic_path

    peak, bandwidth = peak_operations(threads, runs), copy_bandwidth(runs)
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def peak_operations(threads: int, runs: int) -> float:
    """Measure operations per second of the innermost loop on a tile of 8 channels that stays in the first cache."""
    import ctypes
    from concurrent.futures import ThreadPoolExecutor

    from e2enet.network.engine.inner_loops import COLUMNS, ROWS, plane_convolution
    from e2enet.network.engine.lazy_volumes import empty_volume
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

    with ThreadPoolExecutor(threads) as pool:
        seconds = median_seconds(lambda: list(pool.map(work, range(threads))), runs)
    return threads * calls * kernels * 18 * ROWS * COLUMNS * LANES / seconds


def copy_bandwidth(runs: int) -> float:
    """Measure bytes per second, read and written, of copying 512 MiB with torch."""
    import torch

    source = torch.ones(2**27)
    target = torch.empty_like(source)
    return 2 * 4 * 2**27 / median_seconds(lambda: target.copy_(source), runs)
