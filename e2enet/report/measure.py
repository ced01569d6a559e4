"""Latency and memory of a sweep's networks on this machine: python -m e2enet.report.measure FOLDER [--again] ..

Counted costs (cost.json) hold on every machine. Measured costs hold only on the machine that FOLDER/measured.json names
beside them. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.table import Table

from e2enet.common.console import console, say, track
from e2enet.common.errors import exit_on_input_error
from e2enet.common.files import content_key, read_json, write_json
from e2enet.data.formats.scheme import LabelScheme
from e2enet.report.results.measured import MEASURED_FILE, read_measured
from e2enet.runs.folders import COST_FILE, job_state, read_sweep

FIGURES = {"latency": "latency_s", "memory": "peak_bytes"}
# Settings that decide a network's cost, beside its density. Length of training and seeds do not.
COSTLY_TRAINING = ("precision", "clip_norm", "engine", "checkpoint_activations", "compile", "loss", "optimizer")
COSTLY_PLAN = ("patch_size", "strides", "batch_size")


def measure_runs(folder: str | Path, *, again: bool = False, device: str = "auto", repeats: int = 7) -> dict[str, Any]:
    """Measure the networks of a sweep's finished jobs; return the content of measured.json, by job key.

    Jobs whose networks cost the same (`network_key`) are measured once. A network measured before is skipped unless
    `again`. Figures of another machine or device are replaced, since they cannot be compared. Each figure is measured
    in a process of its own (`measure_network`). Per job: `latency_s` (seconds per patch), `peak_bytes` (of training
    steps), `device`, `machine`, `commands` and `measured` (when). A figure that cannot be measured is missing; `error`
    says which and why. The other one is kept, since neither depends on the other. Both are tried again next time.

    Raises:
        InputError: no such device, the folder holds no sweep, or a checkpoint cannot be read.
    """
    # These import torch; readers of measured.json need not wait for it.
    from e2enet.inference.run import resolve_device
    from e2enet.training.records import machine

    place = {"device": str(resolve_device(device)), "machine": machine()}
    sweep = read_sweep(folder)
    finished = {job.key: job.folder for job in sweep.jobs if job_state(job.folder).state == "finished"}
    networks = {key: network_key(run) for key, run in finished.items()}
    stored = read_measured(sweep.folder)
    entries = {key: entry for key, entry in stored.items() if {name: entry.get(name) for name in place} == place}
    known = {} if again else {entry["network"]: entry for entry in entries.values() if "error" not in entry}
    todo = {network: finished[key] for key, network in networks.items() if network not in known}
    for network, run in track(todo.items(), "Measuring networks", total=len(todo)):
        known[network] = {"network": network, **_measure(run, device, repeats)}
        # Written after every network, so that an interruption loses only one.
        entries |= {key: known[other] for key, other in networks.items() if other in known}
        write_json(sweep.folder / MEASURED_FILE, entries)
    entries |= {key: known[network] for key, network in networks.items()}
    write_json(sweep.folder / MEASURED_FILE, entries)
    return entries


def network_key(run: Path) -> str:
    """Return a key, equal for runs of equal cost: architecture, masks, patch, batch, precision, optimizer and so on."""
    from e2enet.inference.checkpoint import read_hyper_parameters

    settings = read_hyper_parameters(run)
    cost = run / COST_FILE
    return content_key(
        {
            "network": settings["network"],
            "in_channels": len(settings["dataset"]["channels"]),
            "num_classes": LabelScheme.from_plain(settings["dataset"]).num_outputs,
            "plan": {name: settings["plan"][name] for name in COSTLY_PLAN},
            "training": {name: settings["training"].get(name) for name in COSTLY_TRAINING},
            "cost": read_json(cost) if cost.is_file() else None,
            "group_size": settings.get("group_size", 1),
        }
    )


def _measure(run: Path, device: str, repeats: int) -> dict[str, Any]:
    """Measure both figures of one network; `error` names those that cannot be measured."""
    errors = []
    entry: dict[str, Any] = {"commands": {}, "measured": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    for figure, name in FIGURES.items():
        arguments = ["-m", "e2enet.report.measure_network", str(run), figure, "--device", device]
        arguments += ["--repeats", str(repeats)] if figure == "latency" else []
        entry["commands"][figure] = shlex.join(["python", *arguments])
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            errors.append(f"{figure}: {_reason(done)}")
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        entry |= {name: result[name], "device": result["device"], "machine": result["machine"]}
    return {**entry, "error": "; ".join(errors)} if errors else entry


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"ended by signal {-done.returncode} (9: usually for want of memory)"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with exit code {done.returncode}"


@exit_on_input_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sweep named on the command line and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m e2enet.report.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a sweep folder, or a run")
    parser.add_argument("--again", action="store_true", help="measure networks again that have been measured")
    options = parse_measuring(parser, arguments)
    entries = measure_runs(options.folder, again=options.again, device=options.device, repeats=options.repeats)
    sweep = read_sweep(options.folder)
    console.print(_table({job.folder.name: entries[job.key] for job in sweep.jobs if job.key in entries}))
    say(f"written: {sweep.folder / MEASURED_FILE}")


def parse_measuring(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Add the options `--device` and `--repeats` to a parser and read the command line."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:N")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="forward passes to take the median of")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: a whole number >= 1 expected")
    return options


def _table(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("job", "device", "latency s", "peak MiB", "measured")
    for name, entry in entries.items():
        seconds = f"{entry['latency_s']:.4f}" if "latency_s" in entry else "-"
        peak = f"{entry['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in entry else "-"
        table.add_row(name, entry.get("device", "-"), seconds, peak, entry.get("error", entry["measured"][:10]))
    return table


if __name__ == "__main__":
    main()
