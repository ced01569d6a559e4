"""Time and memory of predicting a whole scan outside the network, against nnU-Net's predictor; time of real networks.

    python -m benchmarks.predict --nnunet-python PATH_TO_PYTHON_WITH_NNUNETV2
    python -m benchmarks.predict --parts scan --cases as-is --scale 0.3

`scan`: a generated CT of 512 x 512 x 400 voxels and 16 classes (`benchmarks/prepare_work.py`), from .nii.gz to the
label image on the scan's own grid. A 1 x 1 x 1 convolution replaces the network, with the same weights here and in
nnU-Net 2.8. Windows of 64 x 160 x 160, step 0.5, no mirroring, one thread, everything in one process (for nnU-Net
`predict_from_files_sequential`, since its other way keeps the logits in two processes). `as-is` has the plan's spacing;
`resampled` goes from 1 x 0.8 x 0.8 mm to 1.5 x 1 x 1 mm and back. Seconds are the process's user and system time, and
clock time, both without the time in the network. Memory is the peak of the whole process, in GiB of 2^30 bytes.
`agree` is the share of voxels with the same label in both.

`networks`: E2ENet (dense fusion) here and nnU-Net's plain U-Net there, on a part of a volume. The time of a whole case
is extrapolated from the number of its windows. Memory and time of a scan's other steps are not included.

nnU-Net runs in `--nnunet-python` or the environment variable NNUNET_PYTHON (`benchmarks/predict_nnunet.py`). It takes
up to 15 GB. Each contender runs in a process of its own, in turns, and medians are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import new_table, run_worker, show
from benchmarks.network import processor
from benchmarks.predict_work import CLASSES, MEASURES, SCANS, STRIDES
from benchmarks.prepare import ONE_THREAD, versions
from benchmarks.prepare_work import shrunk, write_case

PARTS = ("scan", "networks")
LIMIT_GIB = 6.0  # largest peak that a scan may take with this package


def main() -> None:
    options = parse_arguments()
    if options.worker:
        work = json.loads(options.worker)
        print(json.dumps(MEASURES[work["part"]](work)))
        return
    print("command: python -m benchmarks.predict", *sys.argv[1:])
    print(f"machine: {processor()}, one thread; {versions(options.nnunet_python)}")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if "scan" in options.parts:
            figures["scan"] = {name: compare_scan(name, Path(folder) / name, options) for name in options.cases}
            report_scan(figures["scan"], options)
        if "networks" in options.parts:
            figures["networks"] = compare_networks(Path(folder), options)
            report_networks(figures["networks"], options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cases", nargs="+", choices=list(SCANS), default=list(SCANS))
    parser.add_argument("--nnunet-python", default=os.environ.get("NNUNET_PYTHON"))
    parser.add_argument("--rounds", type=int, default=1, help="processes per contender, in turns")
    parser.add_argument("--scale", type=float, default=1.0, help="voxels per axis of the scan, for quick looks")
    parser.add_argument("--patch", nargs=3, type=int, default=[64, 160, 160], metavar=("D", "H", "W"))
    parser.add_argument("--part-shape", nargs=3, type=int, default=[96, 240, 240], metavar=("D", "H", "W"))
    parser.add_argument("--folder", help="where files are written (0.4 GB); default: the system's temporary folder")
    parser.add_argument("--json", type=Path, help="also write every figure there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare_scan(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write the scan, predict it with both in turns; return their figures and how far their labels agree."""
    from e2enet.data.formats.volume import read_label

    scan = shrunk(SCANS[name], options.scale)
    (folder / "images").mkdir(parents=True)
    write_case(folder, scan)
    (folder / "image.nii.gz").rename(folder / "images" / "case_0000.nii.gz")
    (folder / "label.nii.gz").unlink()
    work = {"part": "scan", "folder": str(folder), "patch": options.patch, "spacing": scan.target, "ct": scan.scheme}
    figures = in_turns(work, options)
    if "theirs" in figures:
        ours, theirs = (read_label(folder / who / "case.nii.gz", depth_axis=2)[0] for who in ("ours", "theirs"))
        figures["agree"] = float(np.mean(ours == theirs))
    return figures


def compare_networks(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Predict a part of a volume with the real networks; return figures, and window counts of the part and a scan."""
    from e2enet.inference.sliding_window import count_windows

    work = {"part": "networks", "folder": str(folder), "patch": options.patch, "shape": options.part_shape}
    figures = in_turns(work | {"strides": STRIDES}, options)
    shapes = {"windows": options.part_shape, "windows_of_case": SCANS["as-is"].shape}
    return figures | {key: count_windows(shape, options.patch, 0.5) for key, shape in shapes.items()}


def in_turns(work: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of both contenders' figures and the largest of their peaks; without nnU-Net, of this one."""
    task = json.dumps(work | {"classes": CLASSES})
    contenders = {"ours": partial(run_worker, "benchmarks.predict", ["--worker", task])}
    if options.nnunet_python:
        contenders["theirs"] = partial(run_worker, "benchmarks.predict_nnunet", [task], python=options.nnunet_python)
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in contenders}
    for _ in range(options.rounds):
        for who, contender in contenders.items():
            runs[who].append(contender(environment=ONE_THREAD))
    return {
        who: {key: (max if key == "peak" else statistics.median)(one[key] for one in part) for key in part[0]}
        for who, part in runs.items()
    }


def report_scan(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """Print a row per case and contender, and whether the scan stays below the limit."""
    table = new_table(
        f"whole scan, one network of 1 x 1 x 1: median of {options.rounds} runs, seconds",
        ("case", "predictor", "CPU outside", "clock outside", "network", "peak GiB", "CPU ratio", "agree"),
        left=2,
    )
    for name, row in figures.items():
        for who, label in (("ours", "e2enet"), ("theirs", "nnU-Net")):
            if who not in row:
                continue
            one, ours = row[who], row["ours"]
            cells = [f"{one[key]:.1f}" for key in ("cpu", "wall", "network")] + [f"{one['peak'] / 2**30:.2f}"]
            ratio = f"{one['cpu'] / ours['cpu']:.2f}x" if who == "theirs" else ""
            table.add_row(name, label, *cells, ratio, f"{row['agree']:.5f}" if who == "theirs" else "")
    show(table)
    worst = max(row["ours"]["peak"] for row in figures.values()) / 2**30
    print(f"our largest peak: {worst:.2f} GiB, {'below' if worst < LIMIT_GIB else 'NOT below'} {LIMIT_GIB:g} GiB")


def report_networks(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """Print seconds per window, and the extrapolated time of a case."""
    windows, of_case = figures["windows"], figures["windows_of_case"]
    for who, label in (("ours", "E2ENet in e2enet"), ("theirs", "plain U-Net in nnU-Net")):
        if who in figures:
            one = figures[who]
            minutes = one["network"] / windows * of_case / 60
            print(
                f"{label}: {one['network'] / windows:.2f} s per window of {options.patch} in the network, "
                f"{one['wall'] / windows:.2f} s outside ({windows} windows, peak {one['peak'] / 2**30:.2f} GiB); "
                f"EXTRAPOLATED to the {of_case} windows of a case: {minutes:.0f} min in the network"
            )


if __name__ == "__main__":
    main()
