"""Time, memory and kernels of a training step, and their ratios to nnU-Net's PlainConvUNet.

A step is the forward and backward pass of every head under autocast. Each contender has a process of its own, so that
memory peaks do not mix and one that fails ends no other; torch.compile comes last and gets the time that is left.
Kernels are counted by torch's profiler, without copies of memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
from typing import Any

import torch

from benchmarks.gpu_networks import CONTENDERS, make_contender, noise, run_step
from benchmarks.gpu_options import Work, add_arguments, read_work
from benchmarks.gpu_report import Report, tell
from benchmarks.measuring import warm_seconds
from e2enet.system.determinism import set_torch_flags
from e2enet.system.memory import forget_peak, resident_peak

# Goals, against PlainConvUNet. At S = 0 the time of the fastest counts: `training.engine=auto` takes it.
MOST_TIME = 2.0
AIMS = (("fused", "gib", 1.5), ("groups", "seconds", 1.3))
HALF = ("bfloat16", "float16")

Figures = dict[str, Any]  # of a step: seconds, gib, kernels


def main() -> None:
    """Measure one contender; print a line of JSON for each precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    add_arguments(parser)
    options = parser.parse_args()
    work = read_work(options)
    for precision in work.precisions:
        print(json.dumps([precision, measure(options.contender, work, precision)]), flush=True)


def run(work: Work, report: Report) -> None:
    """Tell the figures of each contender in bfloat16 and float16, and their goals."""
    precisions = [name for name in HALF if name in work.precisions] or list(work.precisions)
    figures: dict[str, dict[str, Figures]] = {name: {} for name in precisions}
    for contender in CONTENDERS:
        found, problem = measure_apart(contender, work, precisions)
        for precision, own in found.items():
            figures[precision][contender] = own
        if problem is not None:
            report.fail(f"{CONTENDERS[contender]}: {problem}")
    for precision, own in figures.items():
        report.keep(precision, own)
        table(precision, own, work)
        judge(precision, own, report, goals=work.on_gpu)


def measure_apart(contender: str, work: Work, precisions: list[str]) -> tuple[dict[str, Figures], str | None]:
    """Return a contender's figures by precision, measured in a process of its own, and why some are missing."""
    limit = 0.9 * work.seconds_left()
    command = [sys.executable, "-m", "benchmarks.gpu_step", contender, *work.arguments(limit)]
    command += ["--precisions", *precisions]  # argparse takes the last
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output if isinstance(output, str) else output.decode()
        return read_lines(text), f"not done after {limit:.0f} s"
    problem = None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        problem = said[-1] if said else f"its process ended with exit code {done.returncode}"
        print(done.stderr[-4000:], file=sys.stderr)
    return read_lines(done.stdout), problem


def read_lines(text: str) -> dict[str, Figures]:
    """Return what `main` printed, without a last line that it had no time to finish."""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return dict(json.loads(line) for line in lines if line.startswith('["'))


def measure(contender: str, work: Work, precision: str) -> Figures:
    """Return the median seconds of a warm step, the most GiB in it, and its kernels (None on a CPU)."""
    set_torch_flags(False, "gpu" if work.on_gpu else "cpu")
    network, run_by = make_contender(contender, work.sizes.network, work.device)
    x = noise(work.sizes.batch, 1, *work.sizes.patch, device=work.device)

    def step() -> None:
        run_step(network, run_by, x, None, precision)
        if work.on_gpu:
            torch.cuda.synchronize()

    step()  # compiles, and lets cuDNN choose
    forget_memory(work)
    seconds = statistics.median(warm_seconds(step, work.sizes.runs))
    gib = peak_memory(work) / 2**30
    return {"seconds": seconds, "gib": gib, "kernels": count_kernels(step) or None if work.on_gpu else None}


def forget_memory(work: Work) -> None:
    """Let go of what is not used, and reset what `peak_memory` returns."""
    gc.collect()
    if work.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()


def peak_memory(work: Work) -> int:
    """Return the most bytes since `forget_memory`: of torch's allocator on a GPU, else of the process."""
    return torch.cuda.max_memory_allocated() if work.on_gpu else resident_peak()


def count_kernels(step: Any) -> int:
    """Return how many kernels a step starts on the GPU."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    names = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)


def table(precision: str, figures: dict[str, Figures], work: Work) -> None:
    """Print the figures, and as ratios to PlainConvUNet's."""
    unet, rows = figures.get("plain_unet"), []
    for name, own in figures.items():
        ratios = [f"{own[key] / unet[key]:.2f}" if unet else "-" for key in ("seconds", "gib")]
        kernels = "-" if own["kernels"] is None else str(own["kernels"])
        rows.append([CONTENDERS[name], f"{1000 * own['seconds']:.1f}", f"{own['gib']:.2f}", kernels, *ratios])
    title = f"a training step, {precision}, batch {work.sizes.batch} of {' x '.join(map(str, work.sizes.patch))}"
    columns = "ms", "GiB", "kernels", "time by PlainConvUNet's", "memory by PlainConvUNet's"
    tell(title, ("network", *columns), rows)


def judge(precision: str, figures: dict[str, Figures], report: Report, *, goals: bool) -> None:
    """Tell the figures and, if PlainConvUNet was measured, which goals they reach; these are of GPUs."""
    for name, own in figures.items():
        report.find(f"{CONTENDERS[name]}, {precision}", f"{1000 * own['seconds']:.1f} ms, {own['gib']:.2f} GiB")
    unet = figures.get("plain_unet")
    if unet is None or not goals:
        return
    every_kernel = {"plain", "fused", "implicit", "compiled"} & figures.keys()
    dense = sorted(every_kernel, key=lambda name: figures[name]["seconds"])
    aims = [(name, "seconds", MOST_TIME) for name in dense[:1]] + [
        (name, key, most) for name, key, most in AIMS if name in figures
    ]
    for name, key, most in aims:
        ratio = figures[name][key] / unet[key]
        what = f"{CONTENDERS[name]}, {precision}: {'time' if key == 'seconds' else 'memory'} by PlainConvUNet's"
        report.aim(what, f"{ratio:.2f}", f"at most {most}", reached=ratio <= most)


if __name__ == "__main__":
    main()
