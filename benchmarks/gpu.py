"""The GPU path in one command: counted and compiled anywhere; right, timed and trained where there is a GPU.

    python -m benchmarks.gpu                               # every part, at most eight minutes
    python -m benchmarks.gpu --parts count compile         # these need no GPU
    python -m benchmarks.gpu --small                       # every part in small sizes; a CPU can run it
    python -m benchmarks.gpu --json figures.json

It needs torch, triton, numpy, numba and e2enet's own code, and no network. Parts:

- count: kernels, bytes and memory of a training step, counted on torch's meta device;
- parity: logits and gradients of plain, fused, implicit and groups against float64, in every precision;
- step: time, memory and kernels of a training step: plain, fused, implicit, groups, compiled, nnU-Net's plain U-Net
  (`pip install --no-deps dynamic-network-architectures`; left out where it is missing);
- train: 200 steps with DSFF and a gradient scaler that skips some; DSFF's invariants after each;
- resume: a training that is killed and resumed ends as one that was not, bit for bit;
- ddp: one process of DistributedDataParallel (NCCL) around and above the fused network;
- predict: a scan of 512 x 512 x 400 voxels, 16 classes, by sliding windows;
- batch: the largest batch that fits;
- compile: registers and spilled bytes of the Triton kernels around convolutions;
- multiply: those of the Triton kernels that multiply (`implicit`).

Each part runs in a process of its own with a share of the time, so a part that fails, hangs or kills its process ends
no other. The last table holds everything. Exit code 1: some part failed. A goal that is missed is no failure.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu_options import SMALL, Work, add_arguments, read_work
from benchmarks.gpu_report import Report, everything, read_report
from benchmarks.measuring import show
from benchmarks.network import processor
from e2enet.common.errors import ExitCode, exit_on_input_error, first_line
from e2enet.common.files import require_writable, write_json

# In this order; of the whole time, a part gets this share at most, so that one that hangs leaves some to the others.
SHARES = {
    "count": 0.15,
    "parity": 0.25,
    "step": 0.35,
    "train": 0.2,
    "resume": 0.2,
    "ddp": 0.15,
    "predict": 0.25,
    "batch": 0.2,
    "compile": 0.6,
    "multiply": 0.6,
}
ANYWHERE = ("count", "compile", "multiply")  # these need no GPU


@exit_on_input_error("stopped")
def main() -> int:
    options = parse_arguments()
    work = read_work(options)
    if options.worker:
        return run_worker(options.parts[0], work, Report(options.worker))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))  # `run_part` then ends the part
    print("command: python -m benchmarks.gpu", *sys.argv[1:])
    print(f"machine: {machine(work)}")
    start = time.monotonic()
    if options.json:
        require_writable(options.json.parent)
    able = work.on_gpu or work.sizes.network == SMALL.network
    chosen = options.parts or [name for name in SHARES if able or name in ANYWHERE]
    unable = [name for name in SHARES if not able and name in (options.parts or SHARES) and name not in ANYWHERE]
    if unable and options.parts:
        raise SystemExit(f"--parts {' '.join(unable)}: no GPU here; expected --small, or count, compile and multiply")
    if unable:
        print(f"left out, since there is no GPU (--small runs them on a CPU): {', '.join(unable)}")
    reports = {name: run_part(name, work) for name in SHARES if name in chosen}
    show(everything(reports))
    failed = [name for name, report in reports.items() if report.failures]
    print(f"{time.monotonic() - start:.0f} s; failed: {', '.join(failed) or 'none'}")
    if options.json:
        figures = {name: report.figures for name, report in reports.items() if report.figures}
        failures = {name: reports[name].failures for name in failed}
        write_json(options.json, {"machine": machine(work), **figures, "failures": failures})
    return int(bool(failed))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=SHARES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures into it")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # the file of a part's report
    add_arguments(parser)
    return parser.parse_args()


def machine(work: Work) -> str:
    """Return the device's name, and the versions of what computes there."""
    names = [torch.cuda.get_device_name()] if work.on_gpu else []
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "not installed"
    cuda = f" (CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()})" if work.on_gpu else ""
    python = ".".join(map(str, sys.version_info[:3]))
    return ", ".join([*names, processor(), f"torch {torch.__version__}{cuda}", f"triton {triton}", f"Python {python}"])


def run_part(name: str, work: Work) -> Report:
    """Run a part in a process of its own and return what it found; what ends that process is one of its failures."""
    limit = min(SHARES[name] * work.seconds, work.deadline - time.monotonic())
    if limit < 1:
        report = Report()
        report.fail("not run: the time was over (--minutes)")
        return report
    print(f"\n{name} ..", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report"
        command = [sys.executable, "-m", "benchmarks.gpu", "--parts", name, "--worker", str(file)]
        process = subprocess.Popen([*command, *work.arguments(limit)], start_new_session=True)
        reason = ""
        try:
            code = process.wait(limit)
            if code < 0:
                reason = f"its process was ended by {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            reason, code = f"not done after {limit:.0f} s, its share of the time (--minutes)", 1
        finally:
            with suppress(ProcessLookupError):  # the part and whatever it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        report = read_report(file)
        if reason or (code != 0 and not report.failures):
            report.fail(reason or f"its process ended with exit code {code}")
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return report


def run_worker(name: str, work: Work, report: Report) -> int:
    """Run a part here; an exception is told in the report, and its traceback on stderr."""
    try:
        importlib.import_module(f"benchmarks.gpu_{name}").run(work, report)
    except Exception as error:
        traceback.print_exc()
        report.fail(f"{type(error).__name__}: {first_line(error)}")
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
