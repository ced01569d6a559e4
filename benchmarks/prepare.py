"""Time, memory and agreement of preparing a case, against nnU-Net's preprocessing of the same files.

    python -m benchmarks.prepare --nnunet-python PATH_TO_PYTHON_WITH_NNUNETV2
    python -m benchmarks.prepare --cases mri --scale 0.3 --runs 1

Setting: generated cases (`benchmarks/prepare_work.py`), each read from .nii.gz, cropped, resampled (image order 3,
labels without mixing), normalised and written: here as memory-mapped arrays, by nnU-Net 2.8 as blosc2. `ct` is
512 x 512 x 200 voxels of 0.8 x 0.8 x 2.5 mm with 16 labels, resampled to 0.7 x 0.7 x 2 mm. `ct-as-is` keeps its
spacing. Every contender runs in a process of its own with one thread, in turns. Times are medians of warm runs.

nnU-Net runs in `--nnunet-python`, the environment variable NNUNET_PYTHON, or this interpreter if it has nnunetv2
(`benchmarks/prepare_nnunet.py`). Memory is the peak of the process minus its memory after the imports, in float32
sizes of the case (raw or resampled, whichever is larger).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import new_table, peak_bytes, run_worker, show, warm_seconds
from benchmarks.network import processor
from benchmarks.prepare_work import CASES, Work, shrunk, write_case

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS", "nnUNet_def_n_proc")
ONE_THREAD = {name: "1" for name in THREADS}


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker))))
        return
    peer = options.nnunet_python or (sys.executable if find_spec("nnunetv2") else None)
    print("command: python -m benchmarks.prepare", *sys.argv[1:])
    print(f"machine: {processor()}, one thread, {platform.platform()}; numpy {np.__version__}; {versions(peer)}")
    rows = {}
    for name in options.cases:
        work = shrunk(CASES[name], options.scale)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_case(Path(folder), work)
            rows[name] = compare(Path(folder), work, peer, options)
    report(rows, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--nnunet-python", default=os.environ.get("NNUNET_PYTHON"))
    parser.add_argument("--runs", type=int, default=3, help="warm runs per process")
    parser.add_argument("--rounds", type=int, default=1, help="processes per contender, in turns")
    parser.add_argument("--scale", type=float, default=1.0, help="voxels per axis, for quick looks")
    parser.add_argument("--folder", help="where files are written; default: the system's temporary folder")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def versions(peer: str | None) -> str:
    """Return nnU-Net's versions, or why it is not available."""
    if peer is None:
        return "nnU-Net left out: no nnunetv2 here, and neither --nnunet-python nor NNUNET_PYTHON is given"
    code = "from importlib.metadata import version as v; print(v('nnunetv2'), v('scipy'), v('scikit-image'))"
    if shutil.which(peer) is None:
        raise SystemExit(f"{peer}: no such program; the Python that has nnunetv2 expected")
    done = subprocess.run([peer, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{peer} has no nnunetv2:\n{done.stderr}")
    nnunet, scipy, skimage = done.stdout.split()
    return f"nnU-Net {nnunet} with scipy {scipy}, scikit-image {skimage}"


def compare(folder: Path, work: Work, peer: str | None, options: argparse.Namespace) -> dict[str, float]:
    """Run both contenders in turns; return their figures, and how far their arrays agree."""
    task = json.dumps({"folder": str(folder), "runs": options.runs, **asdict(work), "spacing": work.target})
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(run_worker("benchmarks.prepare", ["--worker", task], environment=ONE_THREAD))
        if peer:
            theirs.append(run_worker("benchmarks.prepare_nnunet", [task], python=peer, environment=ONE_THREAD))
    image, label = np.load(folder / "ours_image.npy", mmap_mode="r"), np.load(folder / "ours_label.npy")
    size = 4 * max(np.prod(work.shape), image.size)
    figures = {
        "ours_s": statistics.median(second for one in ours for second in one["seconds"]),
        "ours_peak": max(one["peak"] for one in ours),
        "ours_factor": max(one["peak"] - one["base"] for one in ours) / size,
    }
    if theirs:
        # nnU-Net keeps the file's axes (z, y, x); the frame is (z, x, y), and both are RAS here.
        other = np.load(folder / "nnunet_image.npy")[0].transpose(0, 2, 1)
        figures |= {
            "theirs_s": statistics.median(second for one in theirs for second in one["seconds"]),
            "theirs_peak": max(one["peak"] for one in theirs),
            "correlation": float(np.corrcoef(image[0].ravel(), other.ravel())[0, 1]),
            "dice": dice(label, np.load(folder / "nnunet_label.npy")[0].transpose(0, 2, 1), work.labels),
        }
    return figures


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measure this package: prepare the case as a worker of `e2enet.data.prepare` does."""
    import torch

    from e2enet.data.formats.dataset import RawDataset
    from e2enet.data.formats.naming import Case
    from e2enet.data.formats.scheme import LabelScheme
    from e2enet.data.planning.plan import Plan
    from e2enet.data.preparation.cases import prepare_case
    from e2enet.data.preparation.store import CaseStore

    folder = Path(task["folder"])
    case = Case("case", (folder / "image.nii.gz",), folder / "label.nii.gz")
    labels = {value: f"organ {value}" for value in range(task["labels"])}
    dataset = RawDataset("benchmark", folder, ("image",), LabelScheme(labels), ".nii.gz", (case,), ())
    plan = Plan(2, tuple(task["spacing"]), (64, 128, 128), ((2, 2, 2),) * 5, 2, (task["scheme"],), (64, 128, 128))
    torch.set_num_threads(1)
    torch.mm(torch.ones(2, 2), torch.ones(2, 2))  # loads the matrix library, which happens at its first use
    store = CaseStore.of(folder / "prepared", dataset, plan)
    base = peak_bytes()
    seconds = warm_seconds(lambda: prepare_case(store, case), task["runs"])
    peak = peak_bytes()
    prepared = store.find(case)
    assert prepared is not None and prepared.label is not None
    os.replace(prepared.image, folder / "ours_image.npy")
    os.replace(prepared.label, folder / "ours_label.npy")
    return {"seconds": seconds, "peak": peak, "base": base}


def dice(ours: np.ndarray, theirs: np.ndarray, labels: int) -> float:
    """Return the smallest Dice of any label; nnU-Net's -1 (outside the body) counts as background."""
    scores = []
    for value in range(1, labels):
        one, other = ours == value, theirs == value
        if one.any() or other.any():
            scores.append(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))
    return float(min(scores))


def report(rows: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """Print a table of all cases."""
    columns = (
        "case",
        "voxels, resampled",
        "e2enet s",
        "nnU-Net s",
        "ratio",
        "e2enet peak GiB",
        "in cases",
        "nnU-Net GiB",
    )
    table = new_table(
        f"median of {options.runs * options.rounds} warm runs, one thread", (*columns, "least Dice", "correlation")
    )
    for name, row in rows.items():
        work = shrunk(CASES[name], options.scale)
        shape = [round(edge * old / new) for edge, old, new in zip(work.shape, work.spacing, work.target, strict=True)]
        cells = [name, " x ".join(map(str, shape)), f"{row['ours_s']:.2f}"]
        peaks = [f"{row['ours_peak'] / 2**30:.2f}", f"{row['ours_factor']:.1f}"]
        if "theirs_s" in row:
            cells += [f"{row['theirs_s']:.2f}", f"{row['ours_s'] / row['theirs_s']:.2f}", *peaks]
            cells += [f"{row['theirs_peak'] / 2**30:.2f}", f"{row['dice']:.4f}", f"{row['correlation']:.5f}"]
        else:
            cells += ["", "", *peaks, "", "", ""]
        table.add_row(*cells)
    show(table)


if __name__ == "__main__":
    main()
