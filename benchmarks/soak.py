"""Memory of a training run over 2,000 steps: of its process and of each loader worker.

    python -m benchmarks.soak
    python -m benchmarks.soak --steps 300 --figure /tmp/soak.png

The run is `e2enet train` on a small generated phantom: a network of four channels with DSFF updates every 50 steps,
AdamW, nnU-Net's augmentation in two worker processes, validation of patches in every epoch of 100 steps and of whole
cases in every fifth, and a checkpoint per epoch. From outside, its resident memory (VmRSS in /proc) is read four times
a second, and the step from metrics.csv. The first quarter of the steps is warm-up: caches fill, and malloc keeps
memory. The slope of the rest is Theil and Sen's: the median of the slopes between all pairs of readings, which a few
high readings do not move. Memory is flat if this line rises by less than 2 % of its median per 2,000 steps; the exit
code is 1 if it rises by more.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import new_table, show
from benchmarks.network import processor
from e2enet.common.files import atomic_path, write_csv
from e2enet.system.memory import resident_of

ROOT = Path(__file__).resolve().parents[1]
EPOCH_STEPS = 100
READ_EVERY = 0.25  # seconds
WARM_UP = 0.25  # of the steps
MAX_GROWTH = 0.02  # of the median, per JUDGED_STEPS
JUDGED_STEPS = 2000
WORKER_NAME = "pt_data_worker"  # of torch, in /proc/PID/comm
MIB = 2**20
OVERRIDES = (
    "data.num_train=8",
    "data.num_test=0",
    "data.shape=[40,40,16]",
    "data.num_workers=2",
    "plan.patch_size=[8,16,16]",
    "plan.strides=[[1,2,2],[2,2,2]]",
    "plan.batch_size=2",
    "network.base_features=4",
    f"training.steps_per_epoch={EPOCH_STEPS}",
    "training.validate_full=5",
    "dsff.update_every=50",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "final.predict=false",
)


@dataclass
class Readings:
    """MiB of one process at the steps of the run."""

    steps: list[int] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)

    def add(self, step: int, size: float) -> None:
        self.steps.append(step)
        self.sizes.append(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help=f"a multiple of {EPOCH_STEPS}")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "soak.png")
    parser.add_argument("--csv", type=Path, help="also write every reading there")
    parser.add_argument("--readings", type=Path, help="judge and draw what --csv wrote, without a run")
    options = parser.parse_args()
    print("command: python -m benchmarks.soak", *sys.argv[1:])
    print(f"machine: {processor()}, {os.cpu_count()} cores")
    if options.readings:
        readings = read_rows(options.readings)
    else:
        with tempfile.TemporaryDirectory() as folder:
            readings = watch_run(options.steps, Path(folder))
    if options.csv:
        write_csv(options.csv, rows(readings))
    draw(readings, options.steps, options.figure)
    sys.exit(0 if judge(readings, options.steps) else 1)


def watch_run(steps: int, folder: Path) -> dict[str, Readings]:
    """Train for this many steps and read the memory of all processes meanwhile; return readings by process name."""
    run = folder / "run"
    folders = [f"paths.data={folder}/data", f"paths.prepared={folder}/prepared", f"run_folder={run}"]
    command = [sys.executable, "train.py", *OVERRIDES, *folders, f"training.epochs={steps // EPOCH_STEPS}"]
    readings: dict[str, Readings] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            step = latest_step(run / "metrics.csv")
            if 0 < step < steps:  # after its last step the run ends and frees its memory
                for name, pid in process_names(process.pid).items():
                    size = resident_of(pid)
                    if size is not None:  # else it has just ended
                        readings.setdefault(name, Readings()).add(step, size / MIB)
            time.sleep(READ_EVERY)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    for name in ("training", "worker 1", "worker 2"):
        if name not in readings or readings[name].steps[-1] < 0.9 * steps:
            raise SystemExit(f"{name}: not seen up to the end of the run, so that its memory cannot be judged")
    return readings


def latest_step(path: Path) -> int:
    """Return the optimizer step of the last complete row of a metrics.csv; 0 if there is none yet."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    numbers = [row["step"] or "" for row in csv.DictReader(line for line in lines if line.endswith("\n"))]
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def process_names(pid: int) -> dict[str, int]:
    """Return the process ids of training and its loader workers, in the order of their start."""
    children = [int(word) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for word in read(tasks).split()]
    workers = [child for child in sorted(children) if read(Path(f"/proc/{child}/comm")).strip() == WORKER_NAME]
    return {"training": pid} | {f"worker {number}": worker for number, worker in enumerate(workers, start=1)}


def read(path: Path) -> str:
    """Read a file of /proc; empty if its process has just ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def judged(readings: Readings, steps: int) -> tuple[float, float, float]:
    """Return median MiB, and start and slope (MiB per step) of the fitted line, for the steps after the warm-up."""
    from scipy.stats import theilslopes

    pairs = [pair for pair in zip(readings.steps, readings.sizes, strict=True) if pair[0] >= WARM_UP * steps]
    numbers, sizes = zip(*pairs, strict=True)
    slope, start, _, _ = theilslopes(sizes, numbers)
    return statistics.median(sizes), float(start), float(slope)


def judge(readings: dict[str, Readings], steps: int) -> bool:
    """Print a table; return whether every process's memory is flat."""
    table = new_table(
        f"resident memory in MiB along {steps} steps, after {WARM_UP:.0%} of them",
        ("process", "readings", "median", "largest", f"growth per {JUDGED_STEPS} steps", "flat"),
    )
    verdicts = []
    for name, found in readings.items():
        median, _, slope = judged(found, steps)
        growth = slope * JUDGED_STEPS
        verdicts.append(growth < MAX_GROWTH * median)
        later = [size for step, size in zip(found.steps, found.sizes, strict=True) if step >= WARM_UP * steps]
        cells = [f"{median:.1f}", f"{max(later):.1f}", f"{growth:+.2f} ({growth / median:+.2%})"]
        table.add_row(name, str(len(later)), *cells, "yes" if verdicts[-1] else "NO")
    show(table)
    return all(verdicts)


def draw(readings: dict[str, Readings], steps: int, path: Path) -> None:
    """Draw a panel per process: its readings and the fitted line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * len(readings)), layout="constrained")
    panels = figure.subplots(len(readings), sharex=True, squeeze=False)[:, 0]
    for panel, (name, found) in zip(panels, readings.items(), strict=True):
        median, start, slope = judged(found, steps)
        panel.plot(found.steps, found.sizes, ".", markersize=3, color="tab:blue", label="reading")
        ends = [WARM_UP * steps, steps]
        line = f"slope: {slope * JUDGED_STEPS:+.2f} MiB per {JUDGED_STEPS} steps"
        panel.plot(ends, [start + slope * step for step in ends], color="tab:red", label=line)
        panel.axvspan(0, ends[0], color="0.92", zorder=0)
        # Axis limits: noise on a flat line must not fill the panel, and no peak may be cut off.
        panel.set_ylim(min(0.8 * median, *found.sizes), max(1.2 * median, 1.02 * max(found.sizes)))
        panel.set_title(name, loc="left", fontsize="medium")
        panel.set_ylabel("MiB resident")
        panel.legend(loc="lower right", fontsize="small")
    panels[-1].set_xlabel("optimizer step (grey: warm-up, not judged)")
    panels[-1].set_xlim(0, steps)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def rows(readings: dict[str, Readings]) -> list[dict[str, object]]:
    return [
        {"process": name, "step": step, "mib": round(size, 2)}
        for name, found in readings.items()
        for step, size in zip(found.steps, found.sizes, strict=True)
    ]


def read_rows(path: Path) -> dict[str, Readings]:
    readings: dict[str, Readings] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            readings.setdefault(row["process"], Readings()).add(int(row["step"]), float(row["mib"]))
    return readings


if __name__ == "__main__":
    main()
