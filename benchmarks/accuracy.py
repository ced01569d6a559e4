"""Dice over minutes of training: nnU-Net as it comes and E2ENet, on the same cores, threads and cases.

    python -m benchmarks.accuracy time --data FOLDER --dataset hippocampus --work WORK
    python -m benchmarks.accuracy run --data FOLDER --dataset hippocampus --work WORK
    python -m benchmarks.accuracy report --work WORK
    python -m benchmarks.accuracy run --data DATA --dataset phantom --work TRIAL --minutes 1 2 --seeds 0    # a trial

FOLDER holds Task04_Hippocampus or ACDC as published. A job is one training of a method and seed for the longest of the
minutes. Its weights at each of the minutes predict the validation scans of fold 0, whole and on their own grid. All
methods are scored by e2enet.evaluation. The learning rate falls until the end of the job. With `--each`, every budget
has a training of its own, whose learning rate falls until its end.

Minutes are those of training alone: steps and waiting for batches, without preparation, validation and prediction.
`time` measures the seconds per step of every method; run it while nothing else does. `run` then trains so many steps
that they fill the minutes, so it may also run on a busy machine. The report says how long the steps took on the clock.
`run` measures what `time` has not.

Everything lies in the work folder, and each finished part is a file: a stopped command goes on where it was. Several
commands may share a work folder; each job is done by one of them. nnU-Net's commands are those beside
`--nnunet-python`, the environment variable NNUNET_PYTHON, or this interpreter.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from benchmarks import accuracy_e2enet, accuracy_nnunet
from benchmarks.accuracy_plan import (
    DATASETS,
    NNUNET,
    TITLES,
    Schedule,
    check_choices,
    plan_jobs,
    plan_schedule,
)
from benchmarks.accuracy_report import write_report
from benchmarks.accuracy_work import Bench, Job, busy_cores, job_folder, read_record, read_times, write_times
from benchmarks.network import processor
from e2enet.common.console import flush_every_line, say
from e2enet.common.errors import ExitCode, InputError, exit_on_input_error
from e2enet.common.files import atomic_path, write_json
from e2enet.evaluation import score_files, write_scores
from e2enet.sweeps.process_group import OUTPUT_FILE
from e2enet.system.locks import claimed_folder, locked_folder

BUSY = 0.2  # cores that other programs may use while steps are timed


@exit_on_input_error("stopped; the same command goes on")
def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    flush_every_line()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))  # ends the program that runs, too
    if options.command == "report":
        for path in write_report(options.work, options.output or options.work[0]):
            say(str(path))
        return
    given = getattr(options, "run_threads", None)
    run_threads = options.threads if given is None else given
    threads = {"--threads": options.threads, "--run-threads": run_threads}
    check_choices(options.methods, getattr(options, "seeds", [0]), options.minutes, threads)
    bench = Bench(
        work=options.work.absolute(),
        data=options.data.expanduser().absolute(),
        dataset=options.dataset,
        training=options.training,
        overrides=tuple(options.overrides),
        threads=options.threads,
        run_threads=run_threads,
        minutes=tuple(sorted(options.minutes)),
        each=options.each,
        nnunet_python=options.nnunet_python,
    )
    seconds = dict(options.seconds_per_step)
    for method in options.methods:
        side(method).check(bench, method)
    bench.check_settings()
    if not bench.images.is_dir():
        with atomic_path(bench.images) as temporary:
            accuracy_nnunet.link_images(bench.chosen.split.validation, temporary, bench.chosen.dataset.file_ending)
    for method in options.methods:
        with locked_folder(bench.folder / "preparing", "preparation and times"):
            find_times(bench, method, options.timing_steps, seconds.get(method), again=options.command == "time")
    if options.command == "run":
        run_jobs(bench, options.methods, options.seeds)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("run", "train, predict and score"), ("time", "measure seconds per step, on a quiet machine")):
        own = commands.add_parser(name, help=text)
        add = own.add_argument
        add("--data", type=Path, required=True, metavar="FOLDER", help="parent folder of the raw dataset")
        add("--dataset", choices=DATASETS, required=True)
        add("--work", type=Path, required=True, metavar="FOLDER", help="where everything is kept")
        add("--methods", nargs="+", default=list(TITLES), metavar="METHOD", help=f"of {', '.join(TITLES)}")
        add("--minutes", nargs="+", type=float, default=[10.0, 20.0, 40.0, 80.0], metavar="M")
        add("--each", action="store_true", help="a training of its own for each of the minutes")
        add("--threads", type=int, default=2, help="of a training, and processes of its loader (default: 2)")
        add("--training", default="laptop", metavar="PRESET", help="E2ENet's preset (default: laptop)")
        add("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="more overrides of `e2enet train`")
        add("--nnunet-python", default=os.environ.get("NNUNET_PYTHON", sys.executable), metavar="PYTHON")
        add("--timing-steps", type=int, default=20, metavar="N", help="steps of an epoch that is timed (default: 20)")
        add(
            *("--seconds-per-step",),
            nargs="+",
            type=seconds_of,
            default=[],
            metavar="METHOD=SECONDS",
            help="not measured here but known, e.g. nnunet=4.1",
        )
        if name == "run":
            add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
            add("--run-threads", type=int, metavar="N", help="threads now; minutes count for --threads")
    report = commands.add_parser("report", help="figure and tables, from the files alone")
    report.add_argument("--work", type=Path, nargs="+", required=True, metavar="FOLDER")
    report.add_argument("--output", type=Path, metavar="FOLDER", help="default: the first work folder")
    return parser.parse_args(arguments)


def seconds_of(text: str) -> tuple[str, float]:
    """Return the method and the seconds of METHOD=SECONDS."""
    method, _, seconds = text.partition("=")
    try:
        value = float(seconds)
    except ValueError:
        value = 0.0
    if method not in TITLES or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: METHOD=SECONDS, of {', '.join(TITLES)} and > 0, expected")
    return method, value


def side(method: str) -> ModuleType:
    """Return the module that times, trains and predicts a method."""
    return accuracy_nnunet if method == NNUNET else accuracy_e2enet


def find_times(bench: Bench, method: str, steps: int, given: float | None, *, again: bool) -> None:
    """Keep the seconds per step of a method: those given, else measured now if there are none, or with `again`."""
    side(method).prepare(bench)
    if given is not None:
        write_times(bench, method, given, "given by hand")
    elif again or read_times(bench, method) is None:
        busy = busy_cores()
        say(f"{TITLES[method]}: timing the last {steps} of {2 * steps} steps ...")
        if busy > BUSY:
            say(f"warning: other programs keep {busy:.1f} cores busy; run `time` again without them")
        seconds = side(method).measure_seconds(replace(bench, run_threads=bench.threads), method, steps)
        write_times(bench, method, seconds, f"measured over {steps} steps, {busy:.1f} cores busy before")
    times = read_times(bench, method)
    assert times is not None
    say(f"{TITLES[method]}: {times['seconds_per_step']:.3f} s per step ({times['timing']})")


def run_jobs(bench: Bench, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Do every job: all methods of the first seed, then those of the next."""
    for seed in seeds:
        for points in plan_jobs(bench.minutes, bench.each):
            for method in methods:
                folder = job_folder(bench, method, seed, points)
                with claimed_folder(folder) as held:
                    if held:
                        do_job(bench, make_job(bench, folder, method, seed, points))
                    else:
                        say(f"{folder}: another command is at work there")


def make_job(bench: Bench, folder: Path, method: str, seed: int, points: Sequence[float]) -> Job:
    """Return a job as it was begun; its length does not change with a later measurement."""
    path = folder / "job.json"
    if not path.is_file():
        times = read_times(bench, method)
        assert times is not None
        schedule = plan_schedule(points, times["seconds_per_step"])
        write_json(path, {"schedule": schedule.to_plain(), "timing": times["timing"]})
    begun = read_record(path, ["schedule", "timing"])
    return Job(folder, method, seed, Schedule.from_plain(begun["schedule"]), begun["timing"])


def do_job(bench: Bench, job: Job) -> None:
    """Train, then predict and score each point that is not scored yet."""
    if not job.missing:
        return
    name, schedule = f"{TITLES[job.method]}, seed {job.seed}", job.schedule
    say(f"{name}: {schedule.epochs} epochs of {schedule.steps_per_epoch} steps; output in {job.folder / OUTPUT_FILE}")
    side(job.method).train(bench, job)
    for minutes in job.missing:
        dice = score_point(bench, job, minutes)
        say(f"{name}, {minutes:g} minutes: Dice {dice:.4f}")


def score_point(bench: Bench, job: Job, minutes: float) -> float:
    """Predict and score the validation cases with the weights of a point; write its file and return the mean Dice."""
    folder = job.folder / "predictions" / f"{minutes:g}"
    side(job.method).predict(bench, job, minutes, folder)
    dataset, cases = bench.chosen.dataset, bench.chosen.split.validation
    pairs = {case.id: (folder / f"{case.id}{dataset.file_ending}", case.label) for case in cases if case.label}
    scores, summary = score_files(pairs, dataset.scheme, label_map=dataset.label_map, unit=cases[0].unit)
    write_scores(folder, scores, summary)
    dice = summary["mean"]["dice"]
    if dice is None:
        raise InputError(f"{folder}: no class is there in any reference, so there is no Dice")
    content = {
        "dataset": bench.dataset,
        "method": job.method,
        "seed": job.seed,
        "minutes": minutes,
        "steps": job.schedule.steps(minutes),
        "seconds_per_step": job.schedule.seconds_per_step,
        "clock_seconds": side(job.method).clock_seconds(bench, job, minutes),
        "dice": dice,
        "classes": {entry["name"]: entry["dice"] for entry in summary["classes"].values()},
        "cases": summary["n_cases"],
        "each": bench.each,
        "processor": processor(),
        "threads": bench.threads,
        "run_threads": bench.run_threads,
        "timing": job.timing,
        **side(job.method).describe(bench, job),
    }
    write_json(job.point(minutes), content)
    return float(dice)


if __name__ == "__main__":
    main()
