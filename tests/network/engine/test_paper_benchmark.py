"""`benchmarks.engine --parts paper`: who is measured, that logits agree before anything is timed, and the ratios."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import engine, engine_paper, onnx
from benchmarks.engine_paper import RUNTIMES, choose, compare_paper, in_turns, left_out, require_strides, tables, worker
from e2enet.network import E2ENet
from e2enet.network.dsff import fusion_layers
from e2enet.network.engine import inference

STRIDES = [(1, 2, 2), (2, 2, 2)]
TORCH_ROWS = [("e2enet", "torch"), ("e2enet-dense", "torch"), ("plainconvunet", "torch")]
MALLOC_ROW = ("plainconvunet", "torch-malloc")
ENGINE_ROWS = [("e2enet", "compact"), ("e2enet", "compact-auto")]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the networks tiny, and run what would be a process of its own in this one."""
    architectures = pytest.importorskip("dynamic_network_architectures.architectures.unet")

    def make_network(name: str) -> nn.Module:
        if name == "e2enet":
            return E2ENet(1, 16, STRIDES, base_features=8)
        kernels, levels = [[1, 3, 3]] + [[3, 3, 3]] * 2, [[1, 1, 1], *map(list, STRIDES)]
        found: nn.Module = architectures.PlainConvUNet(
            1, 3, [4, 8, 8], nn.Conv3d, kernels, levels, 1, 16, 1,
            norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, deep_supervision=True,
        )  # fmt: skip
        return found

    for module in (engine_paper, onnx):
        monkeypatch.setattr(module, "make_network", make_network)
        monkeypatch.setattr(module, "STRIDES", STRIDES)
    monkeypatch.setattr(engine_paper, "require_strides", lambda _: None)
    monkeypatch.setattr(engine_paper, "run_worker", lambda _, arguments, environment=None: worker(arguments))
    monkeypatch.setattr("e2enet.system.memory.keep_freed_memory", lambda: None)  # it lasts for the process
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def options(**given: Any) -> argparse.Namespace:
    paper = {"densities": [0.3], "patches": ["4x8x8"], "threads": [1], "batch": 6, "runs": 2, "rounds": 2}
    return argparse.Namespace(**(paper | {"models": None, "runners": None} | given))


def printed_rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line]


def test_every_row_is_measured_or_its_absence_told(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    compare_paper(options())
    output = capsys.readouterr().out
    here = [runtime for runtime in RUNTIMES if all(map(find_spec, (runtime, "onnx", "onnxscript")))]
    for runtime in set(RUNTIMES) - set(here):
        assert f"{runtime} left out: {runtime}" in output
    rows = [
        *TORCH_ROWS,
        MALLOC_ROW,
        *ENGINE_ROWS,
        *((model, runtime) for runtime in here for model in engine_paper.MODELS),
    ]
    found = printed_rows(output)
    named = [[engine_paper.MODELS[model], runner] for model, runner in rows]
    assert [row[:2] for row in found if row[0] != "network" and "---" not in row[0]] == [*named, *named]
    assert "latency of one patch, float32, S = 0.7, 4x8x8, 1 thread(s)" in output
    assert "throughput of 6 patches at once, float32, S = 0.7, 4x8x8, 1 thread(s)" in output
    for row in found:
        if row[1] != "by" and "---" not in row[0]:
            assert float(row[2]) > 0 and float(row[-1]) < 1e-4
            assert (row[3] == "") == (row[:2] == ["PlainConvUNet", "torch"])
            assert (row[4] != "") == (row[1] in RUNTIMES and row[0] != "PlainConvUNet")
            assert (row[5] != "") == (row[0] == "E2ENet, masked")


def test_what_is_not_installed_is_told_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"openvino", "onnxscript", "dynamic_network_architectures"}
    monkeypatch.setattr(engine_paper, "find_spec", lambda name: None if name in absent else object())
    missing = left_out()
    assert missing == {
        "plainconvunet": "dynamic-network-architectures is not installed; there are no ratios to the U-Net",
        "onnxruntime": "onnxscript not installed",
        "openvino": "openvino, onnxscript not installed",
    }
    every = list(engine_paper.MODELS)
    assert choose(every, engine_paper.RUNNERS, missing) == [*TORCH_ROWS[:2], *ENGINE_ROWS]
    assert choose(every, ["compact", "torch-malloc"], {}) == [*TORCH_ROWS, MALLOC_ROW, ENGINE_ROWS[0]]
    assert choose(every, ["openvino"], {}) == [*TORCH_ROWS, *((model, "openvino") for model in every)]
    masked = [("e2enet", "torch"), ("plainconvunet", "torch"), ("e2enet", "openvino"), ("plainconvunet", "openvino")]
    assert choose(["e2enet"], ["openvino"], {}) == masked  # the U-Net and torch are always there


def swapped(network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: network(x).flip(0)


def with_bfloat16_weights(network: nn.Module) -> nn.Module:
    for weights in network.parameters():
        weights.data = weights.data.bfloat16().float()
    return network


def with_further_kernels(network: nn.Module) -> nn.Module:
    for layer in fusion_layers(network).values():
        layer.kernel_mask.fill_(True)
        layer.weight.data[layer.weight == 0] = 0.1
    return network


@pytest.mark.parametrize(
    ("wrong", "batches"),
    [
        (with_bfloat16_weights, 0),
        (with_further_kernels, 0),
        (lambda network: lambda x: network(x) * float("nan"), 0),
        (lambda network: lambda x: network(x)[:, :3], 0),
        (swapped, 1),  # right for a single patch; the batch is never timed
    ],
)
def test_a_wrong_network_is_refused_before_it_is_timed(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: Callable[[Any], Any], batches: int
) -> None:
    given = ["--folder", str(tmp_path), "--density", "0.3", "--patch", "4x8x8"]
    worker([*given, "--write", "e2enet"])
    timed: list[int] = []

    def timed_seconds(_: object, runs: int) -> list[float]:
        timed.append(runs)
        return [1.0] * runs

    monkeypatch.setattr(engine_paper, "timed_seconds", timed_seconds)
    measure = [*given, "--model", "e2enet", "--runner", "compact", "--threads", "1", "--batch", "6", "--runs", "2"]
    assert worker(measure)["latencies"] == [1, 1] and timed == [2, 1]
    timed.clear()
    monkeypatch.setattr(inference, "CompactNetwork", lambda network, choose: wrong(network))
    with pytest.raises(SystemExit, match="E2ENet, masked by compact: "):
        worker(measure)
    assert timed == [2] * batches


def test_a_runtime_with_another_model_is_refused(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runtimes themselves need not be installed."""
    given = ["--folder", str(tmp_path), "--density", "0.3", "--patch", "4x8x8"]
    worker([*given, "--write", "e2enet", "e2enet-dense"])
    opened: list[tuple[str, str, int]] = []

    def open_runtime(name: str, path: Path, threads: int, shape: Sequence[int]) -> Callable[[Any], Any]:
        opened.append((name, path.name, threads))
        network = engine_paper.make_model(answers, 0.3)

        def run(patches: Any) -> Any:
            with torch.inference_mode():
                return network(torch.from_numpy(patches)).numpy()

        return run

    monkeypatch.setattr(engine_paper, "open_runtime", open_runtime)
    measure = [*given, "--model", "e2enet", "--runner", "onnxruntime"]
    measure += ["--threads", "1", "--batch", "6", "--runs", "2"]
    answers = "e2enet"
    assert worker(measure)["difference"] < 1e-5
    assert opened == [("onnxruntime", "e2enet.onnx", 1)]
    answers = "e2enet-dense"
    with pytest.raises(SystemExit, match=r"a logit differs from torch's by .* of the largest; 0\.001 allowed"):
        worker(measure)


def test_contenders_take_turns_and_medians_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str]] = []

    def run_worker(_: str, arguments: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
        assert "XDG_CACHE_HOME" in environment
        model, runner = arguments[-3], arguments[-1]
        order.append((model, runner))
        turn = order.count((model, runner))
        scale = 2.0 if model == "plainconvunet" else 1.0
        return {"latencies": [scale * turn, scale * 10 * turn], "batch": scale * turn**2, "difference": turn / 1e6}

    monkeypatch.setattr(engine_paper, "run_worker", run_worker)
    contenders = [("e2enet", "torch"), ("plainconvunet", "torch")]
    found = in_turns(contenders, 3, [])
    assert order == contenders * 3
    # Latencies 1, 10, 2, 20, 3, 30; batches 1, 4, 9.
    assert found["e2enet", "torch"] == {"latency": 6.5, "batch": 4, "difference": 3e-6}
    assert found["plainconvunet", "torch"] == {"latency": 13, "batch": 8, "difference": 3e-6}


def test_ratios_are_those_of_medians() -> None:
    seconds = {
        ("e2enet", "torch"): (0.2, 16.0),
        ("e2enet-dense", "torch"): (0.25, 20.0),
        ("plainconvunet", "torch"): (0.1, 8.0),
        ("e2enet", "compact"): (0.08, 5.0),
        ("e2enet", "openvino"): (0.4, 32.0),
        ("e2enet-dense", "openvino"): (0.3, 16.0),
        ("plainconvunet", "openvino"): (0.05, 4.0),
    }
    found = {
        contender: {"latency": latency, "batch": batch, "difference": 2e-6}
        for contender, (latency, batch) in seconds.items()
    }
    latency, throughput = tables(found, 64, "here")
    assert latency.title == "latency of one patch, float32, here"
    assert [list(row[2:]) for row in latency.rows] == [
        ["200.0", "0.50x", "", "1.25x", "2e-06"],
        ["250.0", "0.40x", "", "", "2e-06"],
        ["100.0", "", "", "", "2e-06"],
        ["80.0", "1.25x", "", "3.12x", "2e-06"],
        ["400.0", "0.25x", "0.12x", "0.75x", "2e-06"],
        ["300.0", "0.33x", "0.17x", "", "2e-06"],
        ["50.0", "2.00x", "", "", "2e-06"],
    ]
    assert [list(row[2:-1]) for row in throughput.rows[3:5]] == [
        ["12.80", "1.60x", "", "4.00x"],
        ["2.00", "0.25x", "0.12x", "0.50x"],
    ]
    without = {contender: figures for contender, figures in found.items() if contender[0] != "plainconvunet"}
    assert {row[3] for row in tables(without, 64, "here")[0].rows} == {""}


def test_the_part_has_the_papers_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["engine", "--parts", "paper", "--threads", "3"])
    given = engine.parse_arguments()
    paper = engine.filled(given, engine.IN_PAPER)
    assert (paper.densities, paper.patches, paper.batch, paper.threads) == ([0.2], ["32x32x32"], 64, [3])
    assert engine.IN_PAPER["threads"][0] == 1 and engine.IN_PAPER["threads"][-1] == engine.CORES
    others = engine.filled(given, engine.DEFAULTS)
    assert (others.densities, others.patches, others.batch) == ([0.3, 0.2, 0.1], ["32x96x96"], 1)


@pytest.mark.parametrize("patch", ["32x32", "16x32x32", "32x48x32", "24x32x32", "0x32x32"])
def test_a_patch_that_the_strides_do_not_divide_is_refused(patch: str) -> None:
    require_strides("32x32x32")
    with pytest.raises(SystemExit, match=f"--patches {patch}: expected multiples of 16, 32 and 32"):
        require_strides(patch)
