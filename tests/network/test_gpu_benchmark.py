"""`python -m benchmarks.gpu`: all of it in small sizes on the CPU, with little installed; failing and hanging parts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_options import SMALL, Work
from benchmarks.gpu_report import Report, everything, read_report

PROJECT = Path(__file__).parents[2]
ABSENT = ("hydra", "omegaconf", "torchio", "monai", "wandb", "nibabel", "rich")
# Python runs it before the command, and in every process that the command starts.
REFUSE = f"""
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"refused: {{name}}", name=name)

sys.meta_path.insert(0, Absent)
"""
ROW = re.compile(r"^\| (\w+) +\| (.+?) +\| (.+?) +\| (.*?) *\| (\w*) *\|$", re.MULTILINE)


def run(*arguments: str, first: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; `first` is a folder that Python searches first."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, ([first] if first else []) + [PROJECT]))
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=900)


def test_everything_runs_in_small_sizes_with_little_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(REFUSE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for name in ABSENT:
        refused = subprocess.run([sys.executable, "-c", f"import {name}"], env=environment, capture_output=True)
        assert f"refused: {name}".encode() in refused.stderr
    figures = tmp_path / "figures.json"
    done = run("--small", "--precisions", "float16", "--capabilities", "90", "--json", str(figures), first=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "command: python -m benchmarks.gpu --device cpu --small" in done.stdout
    assert f"torch {torch.__version__}, triton " in done.stdout
    rows = ROW.findall(done.stdout.partition("\neverything\n")[2])
    assert {row[0] for row in rows} == {"part", *gpu.SHARES} and done.stdout.endswith("failed: none\n")
    assert {row[4] for row in rows} <= {"held", "yes", ""}
    required = {part: [row[1] for row in rows if row[0] == part and row[4] == "yes"] for part in gpu.SHARES}
    least = {"parity": 6, "train": 4, "resume": 4, "ddp": 5, "predict": 1, "batch": 2}
    assert all(len(required[part]) >= count for part, count in least.items())
    found = json.loads(figures.read_text())
    assert found["failures"] == {} and {*found["count"]} >= {"plain", "fused"}
    assert {*found["step"]["float16"]} >= {"plain", "fused", "implicit", "groups", "compiled"}
    if find_spec("triton") is not None:
        for part in ("compile", "multiply"):
            assert found[part]["float16 sm_90"]["variants"] > 0


def test_counts_of_the_table_in_the_documentation(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run("--parts", "count", "--json", str(figures))
    assert done.returncode == 0, done.stderr
    count = json.loads(figures.read_text())["count"]
    assert count["implicit"]["gb"][0] <= 24
    assert count["fused"].keys() == {"kernels", "gb", "saved_gb"}
    assert sum(count["fused"]["kernels"]) <= 420 < 0.5 * sum(count["plain"]["kernels"])
    assert count["fused"]["gb"][0] <= 52 and count["fused"]["gb"][1] <= 100 and count["fused"]["saved_gb"] <= 9


def test_a_part_that_hangs_ends_no_other() -> None:
    done = run(
        "--small", "--parts", "ddp", "batch", "--minutes", "0.2"
    )  # about two seconds each: torch is hardly imported
    assert done.returncode == 1
    rows = ROW.findall(done.stdout.partition("\neverything\n")[2])
    told = {row[0]: row[2] for row in rows if row[4] == "FAILED"}
    assert told.keys() == {"ddp", "batch"} and done.stdout.endswith("failed: ddp, batch\n")
    assert all("its share of the time" in reason for reason in told.values())


def test_what_needs_a_gpu_is_told() -> None:
    refused = run("--parts", "step", "count")
    assert refused.returncode == 1 and refused.stderr == (
        "--parts step: no GPU here; expected --small, or count, compile and multiply\n"
    )


def test_figures_that_cannot_be_written_are_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    refused = run("--parts", "count", "--json", str(tmp_path / "file" / "figures.json"))
    assert refused.returncode == 2 and "count .." not in refused.stdout
    assert f"{tmp_path / 'file'}: cannot be written" in refused.stderr


def program(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kill -SEGV $$", "its process was ended by SIGSEGV"),
        ("exit 3", "its process ended with exit code 3"),
        ("sleep 60", "not done after 2 s, its share of the time (--minutes)"),
    ],
)
def test_how_a_parts_process_ended(text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))
    work = Work(SMALL, torch.device("cpu"), seconds=2 / gpu.SHARES["ddp"])
    assert gpu.run_part("ddp", work).failures == [reason]


def test_the_part_ends_with_the_command() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--parts", "train"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "train ..\n":
            pass
        process.terminate()
        assert process.stdout.read() == ""  # until the part, which writes there too, has ended
    assert process.returncode == 143


def test_what_was_found_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: Work, report: Report) -> None:
        report.find("seen", "1")
        report.keep("seen", {"value": 1})
        raise RuntimeError("no more\nsecond line")

    monkeypatch.setattr("benchmarks.gpu_ddp.run", fail)
    file = tmp_path / "report"
    assert gpu.run_worker("ddp", Work(SMALL, torch.device("cpu")), Report(file)) == 1
    with file.open("a") as stream:
        stream.write('{"row": ["half a li')
    report = read_report(file)
    assert report.rows == [("seen", "1", "", "")] and report.figures == {"seen": {"value": 1}}
    assert report.failures == ["RuntimeError: no more"]
    assert everything({"ddp": report}).rows == [
        ("ddp", "seen", "1", "", ""),
        ("ddp", "failure", "RuntimeError: no more", "", "FAILED"),
    ]


def test_goals_and_requirements() -> None:
    report = Report()
    report.aim("time", "2.5", "at most 2", reached=False)
    assert report.failures == []
    report.require("bits", "others", "the same", held=False)
    report.require("bits", "the same", "the same", held=True)
    assert report.failures == ["bits: others; expected the same"]
    assert [row[3] for row in report.rows] == ["missed", "FAILED", "yes"]
    assert len(everything({"a": report}).rows) == 3  # a requirement that fails is one row


def test_another_process_gets_the_same_work() -> None:
    from argparse import ArgumentParser

    from benchmarks.gpu_options import add_arguments, read_work

    parser = ArgumentParser()
    add_arguments(parser)
    first = read_work(parser.parse_args(["--small", "--device", "cpu", "--batch", "3", "--capabilities", "90"]))
    second = read_work(parser.parse_args(first.arguments(30)))
    assert (second.sizes, second.precisions, second.capabilities) == (first.sizes, first.precisions, (90,))
    assert second.sizes.batch == 3 and second.sizes.patch == SMALL.patch
    assert first.seconds == 3600 and second.seconds == 30 and 28 < second.seconds_left() <= 30
