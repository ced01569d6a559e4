"""`python -m benchmarks.accuracy`: minutes as steps, jobs that go on, and a whole tiny run of E2ENet's part.

tests/nnunet/test_accuracy_nnunet.py runs nnU-Net's part. tests/test_accuracy_report.py reads what both write.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from benchmarks import accuracy, accuracy_e2enet, accuracy_work
from benchmarks.accuracy_plan import OVERRIDES, TITLES, Schedule, check_choices, plan_jobs, plan_schedule
from benchmarks.accuracy_work import Bench, job_folder, read_times, run_program, thread_variables, write_times
from e2enet.common.errors import InputError
from e2enet.common.files import read_json

TINY = (
    "data.num_train=5",
    "data.num_test=0",
    "data.shape=[40,40,16]",
    "plan.patch_size=[8,16,16]",
    "plan.strides=[[1,2,2],[2,2,2]]",
    "plan.batch_size=2",
    "network.base_features=4",
    "training.validation_patches=4",
    "training.checkpoint_every=1",
    "trainer.probe=false",
    "callbacks.validation_picture=null",
    "data.num_workers=0",
)


def make_bench(folder: Path, **changes: Any) -> Bench:
    values: dict[str, Any] = {
        "training": "small",
        "overrides": TINY,
        "threads": 1,
        "run_threads": 1,
        "minutes": (1.0, 2.0),
    }
    values |= {"dataset": "phantom", "each": False, "nnunet_python": sys.executable}
    return Bench(work=folder / "work", data=folder / "data", **values | changes)


def command(folder: Path, *more: str, name: str = "run") -> list[str]:
    places = ["--data", str(folder / "data"), "--dataset", "phantom", "--work", str(folder / "work")]
    return [name, *places, "--training", "small", "--threads", "1", *more, "--overrides", *TINY]


# ------------------------------------------------------------------------------------------- minutes and steps


def test_epochs_end_at_the_minutes() -> None:
    plan = plan_schedule([40, 10, 20], 0.57)  # 600 s / 0.57 s = 1052.6 steps = 27 epochs of 38.99
    assert plan == Schedule(0.57, 39, 108, {10: 27, 20: 54, 40: 108})
    assert plan.period == 27 and plan.steps(20) == 2106 and plan.minutes(20) == pytest.approx(20.007)
    assert plan_schedule([0.1, 0.25], 1.5) == Schedule(1.5, 2, 5, {0.1: 2, 0.25: 5})  # both are multiples of 3 s
    assert plan_schedule([10], 25.0) == Schedule(25.0, 24, 1, {10: 1})
    assert Schedule.from_plain(json.loads(json.dumps(plan.to_plain()))) == plan
    assert Schedule(1.0, 5, 2, {}).period == 2  # of a training that is timed


@pytest.mark.parametrize("seconds", [0.003, 0.0712, 0.55, 1.9, 4.1, 7.77, 24.0, 113.0])
def test_points_are_as_near_as_whole_steps_allow(seconds: float) -> None:
    plan = plan_schedule([10, 20, 40, 80], seconds)
    steps = 600 / seconds
    # Epochs of one length share the rounding: at most half a step each, of those in ten minutes.
    assert abs(plan.steps(10) - steps) <= plan.points[10] / 2
    assert [plan.steps(minutes) / plan.steps(10) for minutes in plan.points] == [1, 2, 4, 8]
    assert plan.points[80] == plan.epochs and plan.period == plan.points[10]
    assert 25 <= plan.steps_per_epoch <= 76 or steps < 25


def test_minutes_too_short_for_a_step_are_refused() -> None:
    with pytest.raises(InputError, match=r"minutes 0.5 0.75: they are multiples of 0.25, in which 0.75 steps of 20 s"):
        plan_schedule([0.5, 0.75], 20)


def test_trainings_of_the_minutes() -> None:
    assert plan_jobs([20, 10], each=False) == [(10, 20)] and plan_jobs([20, 10], each=True) == [(10,), (20,)]


def test_wrong_choices_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_choices(["dense", "unet"], [0, -1], [10, 0, 10], {"--threads": 0, "--run-threads": 2})
    assert str(caught.value).splitlines()[1:] == [
        "  - --methods unet: expected nnunet | dense | s50 | s80",
        "  - --seeds -1: a whole number >= 0 expected",
        "  - --minutes 0: a number > 0 expected",
        "  - --threads 0: a whole number >= 1 expected",
        "  - --minutes 10 0 10: each once expected",
    ]
    with pytest.raises(SystemExit) as stopped:
        accuracy.main(command(tmp_path, "--methods", "dense", "--minutes", "0"))
    assert stopped.value.code == 2 and "--minutes 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_seconds_of_a_method() -> None:
    assert accuracy.seconds_of("s80=0.25") == ("s80", 0.25)
    for wrong in ("s80", "s80=", "s80=0", "s80=nan", "s80=inf", "unet=1"):
        with pytest.raises(argparse.ArgumentTypeError, match="METHOD=SECONDS"):
            accuracy.seconds_of(wrong)


# ------------------------------------------------------------------------------------------------ the work folder


def test_command_lines_of_the_methods(tmp_path: Path) -> None:
    """The whole command line is checked before anything starts; the methods differ in their masks alone."""
    bench = make_bench(tmp_path, dataset="acdc", training="hippocampus", overrides=())
    lines = {method: bench.arguments(method) for method in OVERRIDES}
    shared = set.intersection(*map(set, lines.values()))
    assert {method: [word for word in line if word not in shared] for method, line in lines.items()} == {
        "dense": ["dsff=dense"],
        "s50": ["dsff=short", "dsff.density=0.5"],
        "s80": ["dsff=short", "dsff.density=0.2"],
    }
    for method in OVERRIDES:
        accuracy.side(method).check(bench, method)
    with pytest.raises(InputError, match=r"network\.base"):
        accuracy.side("dense").check(make_bench(tmp_path, overrides=("network.base=4",)), "dense")


def test_another_setting_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    make_bench(tmp_path).check_settings()
    make_bench(tmp_path).check_settings()
    with pytest.raises(InputError) as caught:
        make_bench(tmp_path, minutes=(1.0, 4.0), threads=2).check_settings()
    assert str(caught.value).splitlines()[1:] == [
        "  - threads is 2, 1 before",
        "  - minutes is [1.0, 4.0], [1.0, 2.0] before",
    ]


def test_folders_of_jobs(tmp_path: Path) -> None:
    assert job_folder(make_bench(tmp_path), "s80", 2, (10, 20)).name == "s80_s2"
    assert job_folder(make_bench(tmp_path, each=True), "s80", 2, (0.5,)).name == "s80_s2_0.5min"


def test_a_job_keeps_the_length_that_it_was_begun_with(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    write_times(bench, "dense", 2.0, "measured over 20 steps")
    folder = job_folder(bench, "dense", 0, bench.minutes)
    first = accuracy.make_job(bench, folder, "dense", 0, bench.minutes)
    assert first.schedule == plan_schedule(bench.minutes, 2.0) and first.timing.startswith("measured over 20 steps, 1 ")
    write_times(bench, "dense", 3.0, "given by hand")
    assert accuracy.make_job(bench, folder, "dense", 0, bench.minutes) == first
    folder = job_folder(bench, "dense", 1, bench.minutes)
    assert accuracy.make_job(bench, folder, "dense", 1, bench.minutes).schedule.seconds_per_step == 3.0


def test_busy_cores_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cpu user nice system idle iowait irq softirq steal, in hundredths of a second."""
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text("cpu 100 10 50 9000 70 1 2 0\ncpu0 1 1\n")
    monkeypatch.setattr(accuracy_work, "STAT", stat)
    later = f"cpu {100 + ticks} {10 + ticks // 2} {50 + ticks // 2} 9999 99 1 2 0\n"
    monkeypatch.setattr(accuracy_work.time, "sleep", lambda _: stat.write_text(later))
    assert accuracy_work.busy_cores(4.0) == 0.5


class FakeSide(SimpleNamespace):
    """A method without a network: it "predicts" the references, and can be stopped at a point."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench=bench, done=[], stop_at=None)

    def train(self, bench: Bench, job: Any) -> None:
        self.done.append("train")

    def predict(self, bench: Bench, job: Any, minutes: float, output: Path) -> None:
        if minutes == self.stop_at:
            raise KeyboardInterrupt
        self.done.append(minutes)
        output.mkdir(parents=True, exist_ok=True)
        for case in bench.chosen.split.validation:
            assert case.label is not None
            shutil.copy(case.label, output / f"{case.id}.nii.gz")

    def clock_seconds(self, bench: Bench, job: Any, minutes: float) -> float:
        return 66.0 * minutes

    def describe(self, bench: Bench, job: Any) -> dict[str, Any]:
        return {"patch_size": [8, 16, 16], "batch_size": 2, "versions": "none", "settings": []}


def test_a_stopped_job_goes_on_with_what_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(tmp_path, overrides=("data.num_train=5", "data.num_test=0", "data.shape=[32,32,12]"))
    fake = FakeSide(bench)
    monkeypatch.setattr(accuracy, "side", lambda _: fake)
    write_times(bench, "s80", 2.0, "given by hand")
    fake.stop_at = 2.0
    with pytest.raises(KeyboardInterrupt):
        accuracy.run_jobs(bench, ["s80"], [0])
    points = job_folder(bench, "s80", 0, bench.minutes) / "points"
    assert fake.done == ["train", 1.0] and [path.name for path in points.iterdir()] == ["1.json"]
    fake.stop_at = None
    accuracy.run_jobs(bench, ["s80"], [0, 1])
    assert fake.done == ["train", 1.0, "train", 2.0, "train", 1.0, 2.0]
    accuracy.run_jobs(bench, ["s80"], [0, 1])
    assert len(fake.done) == 7
    point = read_json(points / "2.json")
    assert point["dice"] == 1.0 and set(point["classes"].values()) == {1.0} and point["cases"] == 1
    expected = {"steps": 60, "seconds_per_step": 2.0, "clock_seconds": 132.0, "minutes": 2.0, "each": False}
    assert {key: point[key] for key in expected} == expected


def test_a_failed_program_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ended with 3; see .*output\.log\nbefore 7$"):
        run_program(["sh", "-c", "echo before $COUNT; exit 3"], tmp_path / "job", {"COUNT": "7"})
    assert (tmp_path / "job" / "output.log").read_text() == "before 7\n"


def test_trainings_may_take_fewer_threads_than_those_that_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are timed with --threads; then they are the same steps on any number."""
    taken: list[tuple[Path, Any]] = []
    monkeypatch.setattr(
        accuracy_e2enet, "run_program", lambda _, folder, variables: taken.append((folder.name, variables))
    )
    monkeypatch.setattr(accuracy_e2enet, "_step_times", lambda _: {1: 0.5})
    monkeypatch.setattr(accuracy_e2enet.shutil, "rmtree", lambda *_, **__: None)
    bench = make_bench(tmp_path, threads=2, run_threads=1)
    accuracy.find_times(bench, "dense", 2, None, again=True)
    accuracy_e2enet.train(
        bench, SimpleNamespace(schedule=Schedule(1.0, 5, 2, {1.0: 2}), folder=tmp_path / "job", method="dense", seed=0)
    )
    assert taken == [("dense", thread_variables(2)), ("job", thread_variables(1))]
    assert "data.num_workers=2" in bench.arguments("dense")


# -------------------------------------------------------------------------------------------------- a whole run


def test_time_run_and_report_on_the_phantom(tmp_path: Path) -> None:
    methods = ["--methods", "s80", "--minutes", "0.1", "0.2"]
    accuracy.main(command(tmp_path, *methods, "--timing-steps", "2", name="time"))
    bench = make_bench(tmp_path)
    times = read_times(bench, "s80")
    assert times is not None and 0 < times["seconds_per_step"] < 60
    assert re.match(r"measured over 2 steps, \d+\.\d cores busy before, 1 threads of \w", times["timing"])
    assert list((bench.folder / "timing").iterdir()) == []
    run = command(tmp_path, *methods, "--seeds", "0", "--seconds-per-step", "s80=2")  # 3 steps in 6 s
    accuracy.main(run)
    job = bench.folder / "jobs" / "s80_s0"
    kept = sorted(path.name for path in (job / "run" / "checkpoints").glob("epoch_*"))
    assert kept == ["epoch_0001.ckpt", "epoch_0002.ckpt"]
    first, second = (read_json(job / "points" / f"{minutes}.json") for minutes in ("0.1", "0.2"))
    assert (first["steps"], second["steps"]) == (3, 6) and first["patch_size"] == [8, 16, 16]
    seconds = pd.read_csv(job / "run" / "metrics.csv")["time/step"].dropna()
    assert len(seconds) == 2 and second["clock_seconds"] == pytest.approx(3 * seconds.sum())
    assert first["clock_seconds"] == pytest.approx(3 * seconds.iloc[0])
    assert read_json(job / "run" / "cost.json")["density"] == pytest.approx(0.2, abs=0.02)
    for point, minutes in ((first, "0.1"), (second, "0.2")):
        summary = read_json(job / "predictions" / minutes / "summary.json")
        assert point["dice"] == summary["mean"]["dice"] and point["cases"] == summary["n_cases"] == 1
    # A point that is gone is scored again without training.
    checkpoint, lost = job / "run" / "checkpoints" / "last.ckpt", job / "points" / "0.2.json"
    written = checkpoint.stat().st_mtime_ns
    lost.unlink()
    accuracy.main(run)
    assert read_json(lost) == second and checkpoint.stat().st_mtime_ns == written
    accuracy.main(["report", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "report")])
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["accuracy.csv", "accuracy.md", "accuracy.png"]
    text = (tmp_path / "report" / "accuracy.md").read_text(encoding="utf-8")
    assert f"| {TITLES['s80']} | 8 x 16 x 16, 2 |       2.00 |     6 |" in text


def wait_for(found: Any, process: subprocess.Popen[bytes]) -> None:
    while not found():
        assert process.poll() is None
        time.sleep(0.05)


def test_a_run_ended_by_sigterm_ends_its_training_and_goes_on(tmp_path: Path) -> None:
    words = ["--methods", "dense", "--seeds", "0", "--minutes", "1", "--seconds-per-step", "dense=0.5"]
    run = [sys.executable, "-m", "benchmarks.accuracy", *command(tmp_path, *words)]
    job = tmp_path / "work" / "phantom" / "jobs" / "dense_s0"
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    wait_for((job / "run" / "checkpoints" / "last.ckpt").is_file, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    living = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(job / "run") not in living
    assert not (job / "points").exists() and not (job / "run" / "checkpoints" / "epoch_0002.ckpt").exists()
    accuracy.main(command(tmp_path, *words))
    point = read_json(job / "points" / "1.json")
    assert point["steps"] == 120 and point["clock_seconds"] > 0
    assert read_json(job / "run" / "cost.json")["density"] == 1
    assert "stopped by SIGTERM" in (job / "output.log").read_text()
