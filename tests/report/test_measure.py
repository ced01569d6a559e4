"""Measured cost: which networks of a sweep are measured, which results are kept, and that the figures are real."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.network import E2ENet, recompute
from e2enet.report import measure
from e2enet.report.measure import main, measure_runs, network_key
from e2enet.report.measure_network import STEPS, latency, training_peak
from e2enet.report.results.measured import read_measured
from e2enet.training.records import machine

STRIDES = [[1, 2, 2]]
FEATURES = 128
Write = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """Return a function that writes a finished run with a checkpoint, so wide that weights dominate its memory."""

    def write(
        name: str,
        *,
        features: int = FEATURES,
        density: float = 1.0,
        flops: int = 1000,
        finished: bool = True,
        seed: int = 0,
        more_training: dict[str, Any] | None = None,
        group_size: int = 1,
    ) -> Path:
        run = tmp_path / "sweep" / name
        (run / "checkpoints").mkdir(parents=True)
        network = E2ENet(1, 2, STRIDES, base_features=features)
        plan = {
            **{"depth_axis": 2, "spacing": [1.0, 1.0, 1.0], "patch_size": [2, 4, 4], "strides": STRIDES},
            **{"batch_size": 2, "normalisation": [{"scheme": "zscore", "nonzero": False}], "median_shape": [9, 9, 9]},
        }
        dataset = {"labels": {0: "background", 1: "x"}, "channels": ["CT"], "mirror_axes": [], "file_ending": ".nii.gz"}
        training = {
            **{"precision": "32", "clip_norm": 12.0, "compile": False, "epochs": 3},
            **(more_training or {}),
            "loss": {"_target_": "e2enet.training.losses.DiceCrossEntropy"},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
        }
        settings = {"name": "e2enet", "base_features": features}
        content = {
            "state_dict": {f"network.{key}": value for key, value in network.state_dict().items()},
            "hyper_parameters": {
                **{"network": settings, "plan": plan, "dataset": dataset, "training": training},
                "group_size": group_size,
            },
        }
        torch.save(content, run / "checkpoints" / "best.ckpt")
        (run / "cost.json").write_text(json.dumps({"density": density, "exact": {"flops": flops}}))
        (run / "config.yaml").write_text(f"{{seed: {seed}, fold: 0, tag: {name}}}")
        if finished:
            (run / "summary.json").write_text("{}")
        return run

    return write


class FakeProcesses:
    """Stand-in for `subprocess.run`: record the measurements and answer with their number."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fails: tuple[str, ...] = ()  # (run, figure), or (run, "") for both figures
        self.place: dict[str, Any] = {"device": "cpu", "machine": machine()}

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        run, figure = Path(command[3]).name, command[4]
        self.calls.append((run, figure))
        if self.fails in ((run, figure), (run, "")):
            return subprocess.CompletedProcess(command, -9, "", "")
        name = {"latency": "latency_s", "memory": "peak_bytes"}[figure]
        answer = {name: float(len(self.calls)), **self.place}
        return subprocess.CompletedProcess(command, 0, f"a warning\n{json.dumps(answer)}\n", "")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> FakeProcesses:
    fake = FakeProcesses()
    monkeypatch.setattr(measure.subprocess, "run", fake)
    return fake


def by_run(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries by run name."""
    keys = {job.folder.name: job.key for job in measure.read_sweep(folder).jobs}
    entries = read_measured(folder)
    return {name: entries[key] for name, key in keys.items() if key in entries}


def test_networks_of_finished_jobs_are_measured_once_each(write_run: Write, processes: FakeProcesses) -> None:
    folder = write_run("a", features=2).parent
    write_run("b", features=2, seed=1)
    write_run("c", features=2, density=0.2)
    write_run("d", features=4)
    write_run("e", features=4, group_size=8)
    write_run("f", features=2, density=0.2, flops=900)  # as many kernels, in other layers
    write_run("unfinished", features=6, finished=False)
    measure_runs(folder, device="cpu")
    assert [run for run, figure in processes.calls if figure == "latency"] == ["b", "c", "d", "e", "f"]
    entries = by_run(folder)
    assert set(entries) == {"a", "b", "c", "d", "e", "f"} and entries["a"] == entries["b"]
    assert [entries[name]["latency_s"] for name in "acdef"] == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert [entries[name]["peak_bytes"] for name in "acdef"] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert entries["d"]["machine"] == machine()
    assert entries["d"]["commands"]["memory"].endswith("memory --device cpu")


def test_measured_once_is_enough_unless_asked_again(write_run: Write, processes: FakeProcesses) -> None:
    folder = write_run("a", features=2).parent
    first = measure_runs(folder, device="cpu")
    assert measure_runs(folder, device="cpu") == first and len(processes.calls) == 2
    write_run("b", features=2, seed=1)  # a later job with a measured network
    assert len(measure_runs(folder, device="cpu")) == 2 and len(processes.calls) == 2
    assert by_run(folder)["b"]["latency_s"] == 1.0
    measure_runs(folder, again=True, device="cpu")
    assert len(processes.calls) == 4 and by_run(folder)["a"]["latency_s"] == 3.0


@pytest.mark.parametrize(
    "place", [{"machine": {**machine(), "processor": "another"}}, {"machine": {"cores": 2}}, {"device": "cuda:0"}]
)
def test_figures_of_another_machine_or_device_are_not_kept(
    place: dict[str, Any], write_run: Write, processes: FakeProcesses
) -> None:
    folder = write_run("a", features=2).parent
    gone = write_run("b", features=4)
    here = processes.place
    processes.place = here | place
    measure_runs(folder, device="cpu")  # measured at another place
    processes.place = here
    write_run("c", features=6)
    (gone / "summary.json").unlink()
    measure_runs(folder, device="cpu")
    assert [run for run, figure in processes.calls if figure == "latency"] == ["a", "b", "a", "c"]
    entries = by_run(folder)  # all of one place; b cannot be measured again here
    assert set(entries) == {"a", "c"} and entries["a"]["latency_s"] == 5.0
    assert all({name: entry[name] for name in here} == here for entry in entries.values())
    assert measure_runs(folder, device="cpu") == read_measured(folder) and len(processes.calls) == 8


@pytest.mark.parametrize(("fails", "kept"), [("memory", "latency_s"), ("latency", "peak_bytes"), ("", None)])
def test_a_figure_that_cannot_be_measured_does_not_stop_the_others(
    fails: str, kept: str | None, write_run: Write, processes: FakeProcesses, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run("a", features=2).parent
    write_run("b", features=4)
    processes.fails = ("a", fails)
    main([str(folder), "--device", "cpu"])
    entries, told = by_run(folder), capsys.readouterr().out
    assert [name for name in ("latency_s", "peak_bytes") if name in entries["a"]] == ([kept] if kept else [])
    for figure in [fails] if fails else ["latency", "memory"]:
        assert f"{figure}: ended by signal 9" in entries["a"]["error"]
    assert (entries["b"]["latency_s"], entries["b"]["peak_bytes"]) == (3.0, 4.0) and "signal 9" in told
    shown = {"latency_s": "1.0000", "peak_bytes": f"{2 / 2**20:.1f}"}
    (line,) = [line for line in told.splitlines() if re.match(r"\W*a\b", line)]
    assert kept is None or shown[kept] in line
    processes.fails = ()
    measure_runs(folder, device="cpu")  # measures a again
    assert "error" not in by_run(folder)["a"] and processes.calls[-2:] == [("a", "latency"), ("a", "memory")]


def test_what_an_interruption_leaves_is_kept(
    write_run: Write, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run("a", features=2).parent
    write_run("b", features=4)

    def interrupted(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if Path(command[3]).name == "b":
            raise KeyboardInterrupt
        return processes(command)

    monkeypatch.setattr(measure.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_runs(folder, device="cpu")
    assert set(by_run(folder)) == {"a"}


def test_wrong_input(write_run: Write, tmp_path: Path) -> None:
    folder = write_run("a", features=2).parent
    with pytest.raises(InputError, match="device=gpu: expected auto, cpu"):
        measure_runs(folder, device="gpu")
    with pytest.raises(InputError, match="no such folder"):
        measure_runs(tmp_path / "nowhere", device="cpu")
    (folder / "measured.json").write_text("[]")
    with pytest.raises(InputError, match=r"measured\.json: not written by"):
        measure_runs(folder, device="cpu")
    assert read_measured(tmp_path) == {}


def test_a_network_is_measured_as_it_was_trained(write_run: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    original = recompute.checkpoint

    def counted(part: Any, *inputs: Any, **options: Any) -> Any:
        parts.append(part)
        return original(part, *inputs, **options)

    monkeypatch.setattr(recompute, "checkpoint", counted)
    off = write_run("a", features=2)
    on = write_run("b", features=2, more_training={"checkpoint_activations": True})
    assert network_key(off) != network_key(on)
    training_peak(off / "checkpoints" / "best.ckpt", torch.device("cpu"))
    assert parts == []
    training_peak(on / "checkpoints" / "best.ckpt", torch.device("cpu"))
    assert len(parts) == STEPS * (2 + 1 + 1)  # two stages, one node, its second block


@pytest.mark.parametrize(("precision", "dtype"), [("32", None), ("bf16-mixed", torch.bfloat16)])
def test_the_engine_is_chosen_for_the_runs_precision(
    precision: str, dtype: torch.dtype | None, write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def select(network: E2ENet, engine: str, *, amp_dtype: torch.dtype | None) -> E2ENet:
        asked.append((engine, amp_dtype))
        return network

    monkeypatch.setattr("e2enet.report.measure_network.select_training", select)
    monkeypatch.setattr("e2enet.report.measure_network.select_validation", select)
    run = write_run("a", features=2, more_training={"engine": "auto", "precision": precision})
    training_peak(run / "checkpoints" / "best.ckpt", torch.device("cpu"))
    latency(run / "checkpoints" / "best.ckpt", torch.device("cpu"), 1)
    assert asked == 2 * [("auto", dtype)]


@pytest.mark.slow
def test_figures_of_a_real_network(write_run: Write) -> None:
    run = write_run("a")
    (entry,) = measure_runs(run.parent, device="cpu", repeats=1).values()
    weights = 4 * sum(parameter.numel() for parameter in E2ENet(1, 2, STRIDES, base_features=FEATURES).parameters())
    assert entry["latency_s"] > 0 and entry["device"] == "cpu" and entry["machine"]["threads"] >= 1
    # At least weights, gradients and momenta of equal size. At most two more copies, and buffers of the libraries.
    assert 3 * weights <= entry["peak_bytes"] <= 5 * weights + 64 * 2**20
