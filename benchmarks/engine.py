"""Forward pass of the compact engine against the masked dense network and nnU-Net's U-Net; its layers one by one.

    python -m benchmarks.engine                                 # everything, some minutes
    python -m benchmarks.engine --parts networks --densities 0.2 0.1 --precisions float32 bfloat16
    python -m benchmarks.engine --parts layers --figure roofline.png
    python -m benchmarks.engine --parts threads --densities 0.2 --patches 16x64x64 32x32x32 32x96x96
    python -m benchmarks.engine --parts paper

Setting: base 48, six levels, strides (1,2,2) then four (2,2,2), 16 classes, a patch of 32 x 96 x 96, batch 1 unless
`--batch` says otherwise, the full-resolution output only, as in prediction.

`networks`: every contender in a process of its own, in turns, medians of warm runs and the peak memory of the process.
`e2enet` is the masked network as torch runs it (channels-last, with `keep_freed_memory`). `compact` is the engine with
active kernels only. `compact-auto` uses the fastest way of each layer, which each process measures in its first run.
`fused` is the fused pass, which multiplies every kernel; in bfloat16 it computes in it on any processor.
In bfloat16 torch's networks run under autocast. There `e2enet` keeps to float32 if the processor has no AMX
(`e2enet-bfloat16` does not), and `compact-auto` may choose bfloat16.

`layers`: each kind of convolution alone, by the engine over densities and by torch (channels-last) in both precisions,
and the density where the engine takes as long as the faster one. The figure shows operations per second over operations
per byte, with the machine's limits (products of a tile that stays in the cache; copies of volumes that do not).

`threads`: what a pass does on one thread alone, between the loops, and a simulation of 1 to 32 cores by the times of
the pieces that threads would take (`benchmarks.engine_threads`). It runs only when it is asked for.

`paper`: latency and throughput of small patches, as the paper gives them, beside onnxruntime and OpenVINO
(`benchmarks.engine_paper`). Its own defaults: 32 x 32 x 32, batches of 64, S = 0.8, 1 to all cores. It, too, runs only
when it is asked for.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from benchmarks.engine_layers import compare_layers
from benchmarks.engine_paper import MODELS, RUNNERS, compare_paper
from benchmarks.engine_threads import compare_threads
from benchmarks.measuring import median_seconds, new_table, run_worker, show
from benchmarks.network import PRECISIONS, make_network, processor

PARTS = ("networks", "layers", "threads", "paper")
CONTENDERS = ("e2enet", "compact", "compact-auto", "fused", "plainconvunet")
FORCED = "e2enet-bfloat16"


CORES = os.cpu_count() or 1
DEFAULTS = {"densities": [0.3, 0.2, 0.1], "patches": ["32x96x96"], "threads": [CORES], "batch": 1}
IN_PAPER = {
    "densities": [0.2],
    "patches": ["32x32x32"],
    "threads": [*(2**power for power in range(10) if 2**power < CORES), CORES],
    "batch": 64,
}


def main() -> None:
    given = parse_arguments()
    options = filled(given, DEFAULTS)
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
        compare_layers(options.threads[0], options.runs, options.figure)
    if "threads" in options.parts:
        compare_threads(options)
    if "paper" in options.parts:
        compare_paper(filled(given, IN_PAPER))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:2]))
    parser.add_argument("--densities", nargs="+", type=float)
    parser.add_argument("--patches", nargs="+", metavar="DxHxW")
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--batch", type=int, help="patches predicted at once")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="processes per contender, in turns")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="of the part paper, beside the U-Net; default: all")
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, help="of the part paper, beside torch; default: all")
    parser.add_argument("--figure", type=Path, help="draw the roofline there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def filled(options: argparse.Namespace, defaults: Mapping[str, Any]) -> argparse.Namespace:
    """Return the options with a part's defaults for what the command line does not give."""
    return argparse.Namespace(
        **{key: defaults.get(key) if value is None else value for key, value in vars(options).items()}
    )


def compare_networks(options: argparse.Namespace, threads: int, patch: str, precision: str) -> None:
    """Print forward times and peaks, compared with those of the masked network and the U-Net."""
    own = [*CONTENDERS[:-1], *([FORCED] if precision == "bfloat16" else [])]
    contenders = [(name, density) for name in own for density in options.densities]
    if find_spec("dynamic_network_architectures"):
        contenders.append((CONTENDERS[-1], 1.0))
    found: dict[tuple[str, float], list[dict[str, float]]] = {contender: [] for contender in contenders}
    for _ in range(options.rounds):
        for name, density in contenders:
            found[name, density].append(measured(options, name, density, threads, patch, precision))
    seconds = {key: statistics.median(row["seconds"] for row in rows) for key, rows in found.items()}
    memory = {key: statistics.median(row["gib"] for row in rows) for key, rows in found.items()}

    table = new_table(
        f"forward, {precision}, batch {options.batch} of {patch}, {threads} threads",
        ("network", "density", "s", "peak GiB", "time / e2enet's", "time / U-Net's", "peak / e2enet's"),
    )
    unet = seconds.get((CONTENDERS[-1], 1.0))
    for (name, density), value in seconds.items():
        base = ("e2enet", density)
        ours = name.startswith(("compact", "fused")) or name == FORCED
        table.add_row(
            name,
            f"{density:g}",
            f"{value:.3f}",
            f"{memory[name, density]:.2f}",
            f"{value / seconds[base]:.2f}" if ours else "",
            f"{value / unet:.2f}" if unet and name != CONTENDERS[-1] else "",
            f"{memory[name, density] / memory[base]:.2f}" if ours else "",
        )
    show(table)


def measured(
    options: argparse.Namespace, name: str, density: float, threads: int, patch: str, precision: str
) -> dict[str, float]:
    """Measure one contender in a fresh process without cached choices."""
    arguments = ["--worker", name, "--densities", str(density), "--threads", str(threads), "--patches", patch]
    arguments += ["--batch", str(options.batch)]
    with TemporaryDirectory() as cache:
        return run_worker(
            "benchmarks.engine",
            [*arguments, "--precisions", precision, "--runs", str(options.runs)],
            environment={"XDG_CACHE_HOME": cache},
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a forward pass and the peak memory of this process in GiB."""
    import torch

    from e2enet.network.dsff import init_masks
    from e2enet.network.engine.inference import CompactNetwork
    from e2enet.network.fused.network import FusedNetwork
    from e2enet.system.memory import forget_peak, give_back_freed_memory, keep_freed_memory, resident_peak

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
        gc.collect()
        give_back_freed_memory()  # both as e2enet predict does
    elif options.worker == "fused":
        network = FusedNetwork(network, fixed=True)
    x = torch.randn(options.batch, 1, *map(int, options.patches[0].split("x")))
    forget_peak()
    pays = mock.patch("e2enet.network.e2enet.half_precision_pays_on_cpu", lambda: True)
    with torch.no_grad(), torch.autocast("cpu", enabled=half), pays if options.worker == FORCED else nullcontext():
        seconds = median_seconds(lambda: network(x), options.runs)
    return {"seconds": seconds, "gib": resident_peak() / 2**30}


if __name__ == "__main__":
    main()
