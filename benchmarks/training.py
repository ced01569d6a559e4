"""A training step with active kernels only against that of the masked network and of nnU-Net's U-Net.

    python -m benchmarks.training                              # everything, some twenty minutes
    python -m benchmarks.training --parts step --densities 0.2 --threads 2
    python -m benchmarks.training --parts widths
    python -m benchmarks.training --parts step --densities 0.2 --precisions float32 bfloat16

`step`: forward and backward of every head, base 48, six levels, strides (1,2,2) then four (2,2,2), 16 classes, a patch
of 32 x 96 x 96. `masked` is the network as torch trains it (channels-last, masks multiply dense convolutions), `sparse`
with `training.engine=sparse`, `fused` with `training.engine=fused`. In bfloat16 steps run under autocast; there
`masked` keeps to float32 if the processor has no AMX, and `sparse` always does. `kernel` and `group` are granularities
of the masks (groups of 16 output channels). Every row runs in processes of its own, in turns, with `keep_freed_memory`
as in `e2enet train`; medians of warm runs, the largest peak of the processes.

`widths`: masked and sparse by base width, five levels, a patch of 32 x 64 x 64. It shows from which width on
`training.engine=auto` should use the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from importlib.util import find_spec
from typing import Any

from benchmarks.measuring import median_seconds, new_table, run_worker, show
from benchmarks.network import PRECISIONS, STRIDES, make_network, processor

PARTS = ("step", "widths")
WIDTHS = (8, 16, 24, 32, 48)
GROUP = 16


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    import torch

    print("command: python -m benchmarks.training", *sys.argv[1:])
    print(f"machine: {processor()}, torch {torch.__version__}")
    for threads in options.threads:
        for precision in options.precisions if "step" in options.parts else ():
            compare_steps(options, threads, precision)
        if "widths" in options.parts:
            compare_widths(options, threads)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.5, 0.3, 0.2, 0.1])
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"], help="of the steps")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="processes per row, in turns")
    parser.add_argument("--worker", choices=("masked", "sparse", "fused", "plainconvunet"), help=argparse.SUPPRESS)
    parser.add_argument("--base", type=int, default=48, help=argparse.SUPPRESS)
    parser.add_argument("--granularity", default="kernel", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare_steps(options: argparse.Namespace, threads: int, precision: str) -> None:
    """Print step times and peaks, compared with those of the masked network and the U-Net."""
    rows: list[tuple[str, str, float]] = [("masked", "kernel", options.densities[0])]
    rows += [("sparse", granularity, density) for granularity in ("kernel", "group") for density in options.densities]
    rows.append(("fused", "kernel", options.densities[0]))
    if find_spec("dynamic_network_architectures"):
        rows.append(("plainconvunet", "", 1.0))
    found = in_turns(options, threads, [(name, grain, density, 48) for name, grain, density in rows], precision)
    seconds, gib = found[0]
    unet = found[-1][0] if rows[-1][0] == "plainconvunet" else None
    table = new_table(
        f"a step, {precision}, {threads} threads",
        ("network", "masks", "density", "s", "peak GiB", "time / masked", "time / U-Net", "peak / masked"),
        left=2,
    )
    for (name, grain, density), (own, peak) in zip(rows, found, strict=True):
        beside = f"{own / unet:.2f}" if unet and name != "plainconvunet" else ""
        ratios = (f"{own / seconds:.2f}", beside, f"{peak / gib:.2f}")
        cells = ("any" if name in ("masked", "fused") else f"{density:g}", f"{own:.3f}", f"{peak:.2f}")
        table.add_row(
            name, grain if name == "sparse" else "", *cells, *(ratios if name != "masked" else ("", beside, ""))
        )
    show(table)


def compare_widths(options: argparse.Namespace, threads: int) -> None:
    """Print the sparse step's time as a share of the masked step's, by width and density."""
    densities = [density for density in options.densities if density in (0.5, 0.2)] or options.densities
    columns = [f"sparse / masked at {density:g}" for density in densities]
    table = new_table(f"a step by width, float32, {threads} threads", ("base width", "masked, s", *columns))
    for base in WIDTHS:
        rows = [("masked", "kernel", 0.2, base), *(("sparse", "kernel", density, base) for density in densities)]
        (masked, _), *sparse = in_turns(options, threads, rows)
        table.add_row(str(base), f"{masked:.3f}", *(f"{seconds / masked:.2f}" for seconds, _ in sparse))
    show(table)


def in_turns(
    options: argparse.Namespace,
    threads: int,
    rows: list[tuple[str, str, float, int]],
    precision: str = "float32",
) -> list[tuple[float, float]]:
    """Return median seconds and largest peak of each row, measured in several processes in turns."""
    found: list[list[dict[str, float]]] = [[] for _ in rows]
    for _ in range(options.rounds):
        for results, (name, granularity, density, base) in zip(found, rows, strict=True):
            arguments = ["--worker", name, "--granularity", granularity or "kernel", "--densities", str(density)]
            arguments += [
                "--precisions",
                precision,
                "--base",
                str(base),
                "--threads",
                str(threads),
                "--runs",
                str(options.runs),
            ]
            results.append(run_worker("benchmarks.training", arguments))
    return [
        (statistics.median(one["seconds"] for one in results), max(one["gib"] for one in results)) for results in found
    ]


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a step and the peak memory of this process in GiB."""
    import torch

    from e2enet.network.dsff import init_masks, set_group_size
    from e2enet.network.e2enet import E2ENet
    from e2enet.network.engine import select_training
    from e2enet.system.determinism import set_torch_flags
    from e2enet.system.memory import forget_peak, keep_freed_memory, resident_peak

    torch.manual_seed(0)
    set_torch_flags("warn", "cpu")  # as with trainer=cpu
    torch.set_num_threads(options.threads[0])
    keep_freed_memory()
    size = (32, 96, 96) if options.base == 48 else (32, 64, 64)
    network: Any
    if options.worker == "plainconvunet":
        network = make_network("plainconvunet").train()
    else:
        strides = STRIDES if options.base == 48 else STRIDES[:-1]
        network = E2ENet(1, 16, strides, base_features=options.base).train()
        set_group_size(network, GROUP if options.granularity == "group" else 1)
        init_masks(network, options.densities[0], generator=torch.Generator().manual_seed(0))
    engine = options.worker if options.worker in ("sparse", "fused") else "dense"
    run = select_training(network, engine, amp_dtype=None)
    x = torch.randn(1, 1, *size)

    def step() -> None:
        with torch.autocast("cpu", enabled=options.precisions[0] == "bfloat16"):
            outputs = run(x)
        sum(output.float().mean() for output in outputs).backward()
        network.zero_grad(set_to_none=True)

    forget_peak()
    return {"seconds": median_seconds(step, options.runs), "gib": resident_peak() / 2**30}


if __name__ == "__main__":
    main()
