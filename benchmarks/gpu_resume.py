"""A training that is killed and resumed from its checkpoint ends as one that was not, bit for bit.

Three processes train: one to the end, one that is killed (SIGKILL) some steps after a checkpoint, one that resumes it.
The scaler skips a step before the kill and one after, and masks are updated before and after. The processes use
deterministic operations (`trainer.deterministic=warn`).
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from benchmarks.gpu_loop import Loop
from benchmarks.gpu_options import Work, add_arguments, read_work
from benchmarks.gpu_report import Report
from e2enet.system.determinism import set_torch_flags

EVERY = 4  # steps between checkpoints
CHECKPOINT, END = "last.pt", "end.pt"


def main() -> None:
    """Train to the end, from the checkpoint in the folder if there is one; print each step when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hold", type=int, metavar="STEP", help="wait after this step: the process is killed there")
    add_arguments(parser)
    options = parser.parse_args()
    work, folder = read_work(options), options.folder
    set_torch_flags("warn", "gpu" if work.on_gpu else "cpu")
    steps = work.sizes.resume_steps
    checkpoint = folder / CHECKPOINT
    found = checkpoint if checkpoint.exists() else None
    loop = Loop(work, "SGD", steps=steps, overflows={1, steps - 2}, checkpoint=found)
    print(f"from {loop.done}", flush=True)
    while loop.done < steps:
        loop.step()
        if loop.done % EVERY == 0:
            loop.save(checkpoint)
        print(f"done {loop.done}", flush=True)
        if loop.done == options.hold:
            time.sleep(work.seconds_left())
    loop.save(folder / END)


def run(work: Work, report: Report) -> None:
    """Tell whether the killed and resumed training ends as the other."""
    steps = work.sizes.resume_steps
    kill_at = (steps // 2) // EVERY * EVERY + EVERY // 2  # this many steps after a checkpoint, and not at the end
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        for folder in (whole, killed):
            folder.mkdir()
        train(work, whole)
        train(work, killed, kill_at=kill_at)
        report.require("killed", f"after step {kill_at}", f"before step {steps}", held=not (killed / END).exists())
        before = read(killed / CHECKPOINT)["masks"]["num_updates"]
        start = train(work, killed, starts=True)
        expected = kill_at // EVERY * EVERY
        report.require("resumed", f"from step {start}", f"from the checkpoint of {expected}", held=start == expected)
        ends = [read(folder / END) for folder in (whole, killed)]
    after = ends[0]["masks"]["num_updates"]
    told = f"{before} before the checkpoint, {after - before} after it"
    report.require("updates of the masks", told, "some before and after", held=0 < before < after)
    different = differences(*ends)
    value = f"other: {', '.join(different[:4])}" if different else f"{steps} steps, the same bits"
    report.require("its end against the whole training's", value, "the same bits", held=not different)
    report.keep("resume", {"resumed_from": start, "killed_after": kill_at, "different": different})


def train(work: Work, folder: Path, *, kill_at: int | None = None, starts: bool = False) -> int:
    """Train in a process of its own; return the last step that it told, or with `starts` the one that it began from.

    Raises:
        RuntimeError: it ended by itself before its time, with its last words.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_resume", str(folder), *work.arguments(work.seconds_left())]
    if kill_at is not None:
        command += ["--hold", str(kill_at)]
    told: dict[str, int] = {}
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                word, _, number = line.partition(" ")
                if word in ("from", "done"):
                    told[word] = int(number)
                if kill_at is not None and told.get("done") == kill_at:
                    process.kill()
                    break
            code = process.wait(work.seconds_left())
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        said = errors.read().strip()
    if code != (0 if kill_at is None else -signal.SIGKILL):
        raise RuntimeError(f"a training ended with exit code {code}: {said.splitlines()[-1] if said else 'no message'}")
    return told["from" if starts else "done"]


def read(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint."""
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content


def differences(first: Any, second: Any) -> list[str]:
    """Return the names of what differs between two checkpoints; tensors are compared bit for bit."""
    one, other = (dict(tree_flatten_with_path(state)[0]) for state in (first, second))
    names = sorted(one.keys() | other.keys(), key=keystr)
    return [keystr(name) for name in names if not _same(one.get(name), other.get(name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        bits = one.flatten().contiguous().view(torch.uint8), other.flatten().contiguous().view(torch.uint8)
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
    return type(one) is type(other) and one == other


if __name__ == "__main__":
    main()
