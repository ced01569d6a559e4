"""Time and memory of nnU-Net's predictor on a CPU, with E2ENet masked, E2ENet by its active kernels, nnU-Net's U-Net.

    python -m benchmarks.nnunet                                    # needs e2enet[nnunet]; some minutes
    python -m benchmarks.nnunet --densities 0.1 --windows 3 --rounds 1

Setting: base 48, six levels, strides (1,2,2) then four (2,2,2), 16 classes, windows of 32 x 96 x 96, as in
`benchmarks.engine`. nnUNetPredictor takes a preprocessed volume of `--windows` windows in a row, without mirroring, as
`nnUNetv2_predict -device cpu --disable_tta` does. Random weights: time does not depend on them. Contenders:

- masked: E2ENetAdapter with engine="dense", where torch multiplies every kernel;
- auto: E2ENetAdapter as plans have it: each layer runs the way that was fastest at the first window;
- plainconvunet: nnU-Net's plain U-Net (features 32..320).

Each contender runs in a process of its own, in turns. Seconds are for each window, after one that is not timed: user
and system time of the process, and the clock's, in all and in the network; medians of the rounds. Memory is the largest
peak of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from typing import Any

from benchmarks.measuring import new_table, run_worker, show
from benchmarks.network import STRIDES, processor
from benchmarks.prepare import ONE_THREAD

CONTENDERS = ("masked", "auto", "plainconvunet")
PATCH, CLASSES, BASE = (32, 96, 96), 16, 48


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker))))
        return
    import torch

    print("command: python -m benchmarks.nnunet", *sys.argv[1:])
    print(f"machine: {processor()}, one thread, torch {torch.__version__}")
    own = [(name, density) for density in options.densities for name in CONTENDERS[:2]]
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {one: [] for one in [*own, (CONTENDERS[2], 1.0)]}
    for _ in range(options.rounds):
        for (name, density), found in runs.items():
            work = json.dumps({"contender": name, "density": density, "windows": options.windows})
            found.append(run_worker("benchmarks.nnunet", ["--worker", work], environment=ONE_THREAD))
    report(runs, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.2, 0.1])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="processes per contender, in turns")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(work: dict[str, Any]) -> dict[str, float]:
    """Predict one window, then the volume, by nnU-Net's predictor; return the seconds and the peak."""
    import time

    import torch

    from benchmarks.measuring import peak_bytes
    from benchmarks.predict_nnunet import make_predictor
    from benchmarks.predict_work import Stopwatch, cpu_seconds

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Stopwatch(build(work).eval())
    predictor = make_predictor({"patch": list(PATCH), "spacing": [1.0, 1.0, 1.0], "classes": CLASSES}, network)
    predictor.predict_logits_from_preprocessed_data(torch.randn(1, *PATCH))
    # Windows overlap by half along the last axis: 4 windows of 96 lie in 96 + 3 * 48 voxels.
    shape = (*PATCH[:2], PATCH[2] + (work["windows"] - 1) * PATCH[2] // 2)
    before = network.inside
    cpu, wall = cpu_seconds(), time.perf_counter()
    logits = predictor.predict_logits_from_preprocessed_data(torch.randn(1, *shape))
    seconds = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall, "network": network.inside - before}
    assert math.isfinite(float(logits.float().sum()))
    return {key: value / work["windows"] for key, value in seconds.items()} | {"peak": peak_bytes()}


def build(work: dict[str, Any]) -> Any:
    """Return the contender as nnU-Net's plans would build it, with masks of the density."""
    import torch

    from benchmarks.network import make_network
    from e2enet.network import E2ENet
    from e2enet.network.dsff import init_masks
    from e2enet.network.nnunet_arguments import nnunet_arguments
    from e2enet.nnunet.adapter import E2ENetAdapter

    if work["contender"] == "plainconvunet":
        network: Any = make_network("plainconvunet")
        network.decoder.deep_supervision = False
        return network
    with torch.device("meta"):
        arguments = nnunet_arguments(E2ENet(1, CLASSES, STRIDES, base_features=BASE))
    engine = "dense" if work["contender"] == "masked" else "auto"
    adapter = E2ENetAdapter(1, CLASSES, engine=engine, **arguments)
    init_masks(adapter, work["density"], generator=torch.Generator().manual_seed(0))
    return adapter


def report(runs: dict[tuple[str, float], list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Print a row per contender."""
    table = new_table(
        f"nnU-Net's predictor, a window of {' x '.join(map(str, PATCH))}: median of {options.rounds}",
        ("network", "density", "CPU s", "clock s", "in the network", "peak GiB"),
    )
    for (name, density), found in runs.items():
        middle = {key: statistics.median(one[key] for one in found) for key in ("wall", "network", "cpu")}
        peak = max(one["peak"] for one in found) / 2**30
        cells = [f"{middle[key]:.2f}" for key in ("cpu", "wall", "network")]
        table.add_row(name, "-" if name == CONTENDERS[2] else f"{density:g}", *cells, f"{peak:.2f}")
    show(table)


if __name__ == "__main__":
    main()
