"""Training patches per second, start and memory of E2ENet's loader, against nnU-Net's on the same voxels.

    python -m benchmarks.loader --nnunet-python PATH_TO_PYTHON_WITH_NNUNETV2
    python -m benchmarks.loader --parts speed --batches 30 --rounds 1

Setting: generated cases of 140 x 320 x 320 voxels, one channel, 16 labels; patches of 64 x 160 x 160 in batches of two,
with the targets of four heads (deep supervision, strides (1,2,2), (2,2,2), (2,2,2)). Every loader has one
single-threaded worker process. Its batches are received and not used. Each measurement runs in processes of its own,
contenders in turns, with files in the page cache.

- nnunet: nnU-Net's nnUNetDataLoader with nnUNetTrainer.get_training_transforms, on the cases in its own blosc2 format
  (`benchmarks/loader_nnunet.py`, run by `--nnunet-python` or the environment variable NNUNET_PYTHON);
- worker: this package, `data.augment_on=worker`; the heads' targets, which the loss computes, are timed and added;
- device: this package, `data.augment_on=device`; the device's work (augmentation, targets) is timed separately.

nnU-Net interpolates each label of a rotated patch by itself, this package takes the nearest voxel. That is part of the
difference. `start` is the time from starting Python to the first batch: for 200 cases that are not in the page cache,
and for a data module of 200 small phantoms (dataset, plan and prepared cases are looked up). `memory` is the worker's
proportional set size over 1000 batches of 200 cases.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.loader_work import HEADS, LABELS, MANY_CASES, WORKERS, forget_pages, write_cases
from benchmarks.measuring import new_table, run_worker, show
from benchmarks.network import processor

PARTS = ("speed", "start", "memory")
MEMORY_BATCHES = 1000
# nnU-Net warns about unset folders; none of them is used.
FOLDERS = {f"nnUNet_{name}": tempfile.gettempdir() for name in ("raw", "preprocessed", "results")}
ENVIRONMENT = FOLDERS | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    print("command: python -m benchmarks.loader", *sys.argv[1:])
    print(f"machine: {processor()}, {os.cpu_count()} cores")
    print(f"work: patch {options.patch} of cases {options.shape}, batch 2, {options.batches} batches a run")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.folder = Path(folder)
        write_cases(options)
        figures = {part: REPORTS[part](options) for part in options.parts}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--nnunet-python", default=os.environ.get("NNUNET_PYTHON", sys.executable))
    parser.add_argument("--shape", nargs=3, type=int, default=[140, 320, 320], metavar=("D", "H", "W"))
    parser.add_argument("--patch", nargs=3, type=int, default=[64, 160, 160], metavar=("D", "H", "W"))
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--batches", type=int, default=100, help="batches of each measurement of speed")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender, in turns")
    parser.add_argument("--memory-batches", type=int, default=MEMORY_BATCHES)
    parser.add_argument("--folder", type=Path, help="where the cases are written and removed again (1 GB)")
    parser.add_argument("--json", type=Path, help="also write every figure there")
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--augment-on", default="worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# ----------------------------------------------------------------------------------------------------- reports


def report_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders in turns; print medians and nnU-Net's time divided by this package's."""
    contenders = ["nnunet", "worker", "device"]
    if not has_nnunet(options.nnunet_python):
        contenders.remove("nnunet")
        print(f"nnU-Net left out: {options.nnunet_python} cannot import nnunetv2 (--nnunet-python, NNUNET_PYTHON)")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name in contenders:
            runs[name].append(run_nnunet(options) if name == "nnunet" else run_ours(options, "speed", name))
    medians = {
        name: {key: statistics.median(run[key] for run in part) for key in part[0]} for name, part in runs.items()
    }
    table = new_table(
        f"one worker, ms per patch: median of {options.rounds} runs",
        ("loader", "arrives every", "targets", "patches/s", "worker's CPU", "device's share", "x nnU-Net"),
    )
    for name, row in medians.items():
        seconds = worker_seconds(name, row)
        faster = f"{worker_seconds('nnunet', medians['nnunet']) / seconds:.1f}" if "nnunet" in medians else ""
        cells = [f"{1000 * row[key]:.1f}" for key in ("wall", "targets")] + [f"{1 / seconds:.1f}"]
        table.add_row(name, *cells, f"{1000 * row['cpu']:.1f}", f"{1000 * row['device']:.1f}", faster)
    show(table)
    return {"runs": runs, "medians": medians}


def worker_seconds(name: str, row: dict[str, float]) -> float:
    """Return the worker's seconds per patch. With augmentation on the device, the targets are made there too."""
    return row["wall"] + (row["targets"] if name == "worker" else 0.0)


def report_start(options: argparse.Namespace) -> dict[str, float]:
    """Measure the time from starting Python to the first batch."""
    figures = {}
    for kind, words in (("cases", f"{MANY_CASES} cases"), ("module", f"data module, {MANY_CASES} phantoms")):
        if kind == "module":
            run_ours(options, "start-module", "worker")  # generates and prepares the phantoms
        else:
            forget_pages(options.folder)
        start = time.perf_counter()
        run_ours(options, f"start-{kind}", "worker")
        figures[kind] = time.perf_counter() - start
        print(f"first batch after {figures[kind]:.1f} s ({words})")
    return figures


def report_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the worker's memory over many batches."""
    figures = {name: run_ours(options, "memory", name) for name in ("worker", "device")}
    for name, sizes in figures.items():
        words = [f"{kind} {', '.join(f'{size:.0f}' for size in sizes[kind])} MiB" for kind in ("median", "largest")]
        print(f"memory of the worker, augment_on={name}: {'; '.join(words)}", end=" ")
        print(f"(first, middle and last fifth of {options.memory_batches} batches)")
    return figures


def run_ours(options: argparse.Namespace, work: str, augment_on: str) -> dict[str, Any]:
    """Measure this package's loader in a fresh process and return its figures."""
    given = ["--worker", work, "--augment-on", augment_on]
    for name in ("shape", "patch"):
        given += [f"--{name}", *map(str, getattr(options, name))]
    for name in ("cases", "batches", "memory_batches", "folder"):
        given += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return run_worker("benchmarks.loader", given, environment=ENVIRONMENT)


def run_nnunet(options: argparse.Namespace) -> dict[str, float]:
    """Measure nnU-Net's loader with its own interpreter."""
    given = [str(options.folder), "--batches", str(options.batches), "--patch", *map(str, options.patch)]
    given += ["--heads", json.dumps(HEADS), "--labels", str(LABELS)]
    return run_worker("benchmarks.loader_nnunet", given, python=options.nnunet_python, environment=ENVIRONMENT)


def has_nnunet(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", "import nnunetv2"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


REPORTS = {"speed": report_speed, "start": report_start, "memory": report_memory}

if __name__ == "__main__":
    main()
