"""The parts of `python -m benchmarks.gpu`: their figures on the CPU, and that they find what is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import gpu_batch, gpu_ddp, gpu_parity, gpu_predict, gpu_resume, gpu_step, gpu_train
from benchmarks.gpu_loop import Loop, loss_of, make_batch
from benchmarks.gpu_networks import make_contender, run_step
from benchmarks.gpu_options import SMALL, Work
from benchmarks.gpu_parity import Errors, errors_of, relative_errors
from benchmarks.gpu_report import FAILED, Report
from benchmarks.gpu_unet import PlainConvUNet
from e2enet.network.baselines import PlainUNet, missing_package
from e2enet.network.dsff import fusion_layers

WORK = Work(SMALL, torch.device("cpu"))


def failed(part: Any, work: Work = WORK) -> list[str]:
    """Run a part and return the names of the requirements that do not hold."""
    report = Report()
    part.run(work, report)
    return [row[0] for row in report.rows if row[3] == FAILED]


# ----------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("strides", [[(1, 2, 2), (2, 2, 2), (2, 2, 1)], [(2, 2, 2)] * 2])
def test_the_u_net_is_nnunets(strides: list[tuple[int, int, int]]) -> None:
    if missing_package("PlainUNet.PlainUNet"):
        pytest.skip("nnU-Net's U-Net is missing")
    theirs, ours = PlainUNet(2, 3, strides, base_features=4), PlainConvUNet(2, 3, strides, base_features=4)
    parameters = dict(zip(theirs.parameters(), ours.parameters(), strict=True))
    with torch.no_grad():
        for own, copied in parameters.items():
            assert own.shape == copied.shape
            copied.copy_(own)
    x = torch.randn(2, 2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    for expected, found in zip(theirs.train()(x), ours(x), strict=True):
        torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------------------------------------- parity


def test_relative_errors() -> None:
    wanted = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert relative_errors(wanted + torch.tensor([0.0, 0.5]), wanted) == (0.125, 0.1)  # 0.5 / 4, 0.5 / 5
    zeros = torch.zeros(2)
    assert relative_errors(zeros, zeros) == (0, 0)
    assert relative_errors(torch.tensor([0, 1e-9]), zeros) == (math.inf, math.inf)
    for wrong in (math.nan, math.inf):
        assert relative_errors(torch.tensor([wrong, 1]), wanted) == (math.inf, math.inf)


def test_errors_of_a_step() -> None:
    wanted = {name: torch.ones(4) for name in ("logits 0", "logits 1", "a", "b", "c")}
    errors = {"logits 0": 0.25, "logits 1": 0, "a": 0.5, "b": 0, "c": 0.125}
    found = {name: value * (1 + errors[name]) for name, value in wanted.items()}
    assert errors_of(found, wanted) == Errors(0.25, 0.125, 0.5, 0.125)
    with pytest.raises(ValueError, match=r"gradients of \['c'\] are missing"):
        errors_of({name: value for name, value in found.items() if name != "c"}, wanted)
    own, worse = Errors(3e-3, 1e-3, 3e-2, 1e-2), Errors(3e-3, 1.6e-3, 3e-2, 1e-2)
    plain = Errors(1e-3, 1e-3, 1e-2, 1e-2)
    assert own.no_worse_than(plain, 0) and not worse.no_worse_than(plain, 0) and worse.no_worse_than(plain, 1e-3)


def test_every_precision_is_as_far_from_float64_as_it_should_be() -> None:
    report = Report()
    gpu_parity.run(WORK, report)
    assert report.failures == []
    names = {"shallow, kernels, ", "shallow, groups of 16, ", "one plane, kernels, ", "one plane, groups of 16, "}
    for name in names:
        runs = ("plain", "fused", "implicit", *(["groups"] if "groups" in name else []))
        for run in runs:
            full, half, brain = (
                report.figures[f"{name}{precision}, {run}"] for precision in ("float32", "float16", "bfloat16")
            )
            assert 0 < full["logits"] < 1e-5 and full["gradients"] < 1e-3
            assert 1e-4 < half["logits"] < 1e-2 < 0.1 > brain["logits"] > half["logits"]
    assert len(report.figures) == 3 * 2 * (3 + 4)


def test_parity_finds_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(network: nn.Module) -> nn.Module:
        weight = network.heads[0].weight  # type: ignore[union-attr,index]
        weight.register_hook(lambda grad: 1.001 * grad)
        return network

    monkeypatch.setitem(gpu_parity.RUNS, "fused", scaled)
    work = replace(WORK, precisions=("float32",))
    assert "shallow, kernels, float32, fused" in failed(gpu_parity, work)


# --------------------------------------------------------------------------------------------------------- step


def test_a_step_is_measured() -> None:
    found = gpu_step.measure("fused", WORK, "bfloat16")
    assert 0 < found["seconds"] < 60 and 0.1 < found["gib"] < 16 and found["kernels"] is None


def test_goals_of_a_step() -> None:
    figures = {
        "plain_unet": {"seconds": 1.0, "gib": 2.0, "kernels": 10},
        "plain": {"seconds": 1.9, "gib": 9.0, "kernels": 10},
        "fused": {"seconds": 2.1, "gib": 3.5, "kernels": 10},
        "groups": {"seconds": 1.3, "gib": 9.0, "kernels": 10},
    }
    report = Report()
    gpu_step.judge("float16", figures, report, goals=True)
    assert [row for row in report.rows if row[2]] == [
        ("plain, float16: time by PlainConvUNet's", "1.90", "at most 2.0", "yes"),
        ("fused, float16: memory by PlainConvUNet's", "1.75", "at most 1.5", "missed"),
        ("groups of 16, S = 0.8, float16: time by PlainConvUNet's", "1.30", "at most 1.3", "yes"),
    ]
    assert report.rows[2][:2] == ("fused, float16", "2100.0 ms, 3.50 GiB") and report.failures == []
    report = Report()
    gpu_step.judge("float16", figures, report, goals=False)
    del figures["plain_unet"]
    gpu_step.judge("float16", figures, report, goals=True)
    assert len(report.rows) == 7 and not any(row[2] for row in report.rows)


def test_a_contender_that_fails_or_hangs_ends_no_other() -> None:
    wrong = replace(WORK, sizes=replace(SMALL, patch=(7, 16, 16)))
    found, problem = gpu_step.measure_apart("fused", wrong, ["float32"])
    assert found == {} and problem is not None and problem.startswith("ValueError: input size (D, H, W) = (7, 16, 16)")
    hurried = replace(WORK, deadline=0.0)
    assert gpu_step.measure_apart("fused", hurried, ["float32"]) == ({}, "not done after 1 s")
    assert gpu_step.read_lines('a warning\n["float16", {"seconds": 1}]\n["bfloat16", {"sec') == {
        "float16": {"seconds": 1}
    }


# ------------------------------------------------------------------------------------------------ train, resume


def trained(steps: int = 10, **options: Any) -> tuple[Loop, dict[str, Any]]:
    loop = Loop(WORK, "SGD", steps=steps, **options)
    return loop, gpu_train.train(loop, steps)


def test_training_holds_the_invariants_and_counts_no_skipped_step() -> None:
    loop, found = trained(overflows={1, 5})
    assert found["broken"] == [] and found["skipped"] >= 2
    assert loop.masks.step == 10 - found["skipped"] == loop.done - found["skipped"]
    assert found["updates"] == loop.masks.num_updates >= 1


def test_broken_invariants_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2enet.network.dsff_training.hold_masks", lambda *_: None)
    _, found = trained()
    assert any("weights or moments of inactive kernels are not zero" in problem for problem in found["broken"])


def test_broken_states_are_found() -> None:
    loop = Loop(WORK, "SGD", steps=4)
    invariants = gpu_train.Invariants(loop)
    while loop.step()[1]:
        pass
    assert invariants.broken(skipped=False, counted=1) == []
    assert invariants.broken(skipped=False, counted=1) == ["a step changed no weight"]
    layer: Any = next(iter(fusion_layers(loop.network).values()))
    name = next(iter(fusion_layers(loop.network)))
    with torch.no_grad():
        inactive = (~layer.kernel_mask).nonzero()[0].tolist()
        layer.weight[tuple(inactive)] = torch.nan
        loop.optimizer.state[layer.weight]["momentum_buffer"][tuple(inactive)] = 1
        layer.kernel_mask[tuple(layer.kernel_mask.nonzero()[0].tolist())] = False
    found = invariants.broken(skipped=True, counted=2)
    left = int(2 * layer.weight[0, 0].numel())
    assert found[0].endswith("weights or moments of inactive kernels are not zero") and int(found[0].split()[0]) > left
    assert found[1:] == [
        f"another number of active kernels in {name}",
        "DSFF counted 1 steps; expected 2",
        "a skipped step changed weights or masks",
        "a weight is not finite",
    ]


def test_the_loss_is_that_of_torch() -> None:
    x, label = make_batch(WORK, seed=3)
    assert x.shape == (2, 1, 4, 16, 16) and label.shape == (2, 4, 16, 16) and set(label.unique().tolist()) == {0, 1, 2}
    assert bool((x[:, 0][label == 2] > 0.8).all()) and bool((x[:, 0][label == 0] <= -0.8).all())
    heads = [torch.randn(2, 3, 4, 16, 16), torch.randn(2, 3, 4, 8, 8)]
    fine = nn.functional.cross_entropy(heads[0], label)
    coarse = nn.functional.cross_entropy(heads[1], label[:, :, ::2, ::2])
    torch.testing.assert_close(loss_of(heads, label), (fine + coarse / 2) / 1.5)


def test_a_loop_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    def state(loop: Loop, name: str) -> Any:
        loop.save(tmp_path / f"{name}.pt")
        return torch.load(tmp_path / f"{name}.pt", weights_only=True)

    whole = Loop(WORK, "SGD", steps=8, overflows={1, 6})
    for _ in range(4):
        whole.step()
    middle = state(whole, "middle")
    resumed = Loop(WORK, "SGD", steps=8, overflows={1, 6}, checkpoint=tmp_path / "middle.pt")
    assert resumed.masks.step == whole.masks.step >= 2 and resumed.masks.num_updates >= 1
    assert resumed.done == 4 and gpu_resume.differences(state(resumed, "again"), middle) == []
    for _ in range(4):
        whole.step()
        resumed.step()
    assert gpu_resume.differences(state(whole, "one"), state(resumed, "other")) == []
    assert "['done']" in gpu_resume.differences(state(whole, "one"), middle)


def test_differences_are_by_bits() -> None:
    zero, nan = torch.zeros(2), torch.tensor([torch.nan, 1])
    first = {"a": zero, "b": nan, "c": [1, None], "d": zero}
    second = {"a": -zero, "b": nan.clone(), "c": [1, 2], "d": zero.double()}
    assert gpu_resume.differences(first, first) == []
    assert gpu_resume.differences(first, second) == ["['a']", "['c'][1]", "['d']"]
    assert gpu_resume.differences(first, {**first, "e": 1}) == ["['e']"]


def test_a_training_is_killed_and_told_when_it_fails(tmp_path: Path) -> None:
    assert gpu_resume.train(WORK, tmp_path, kill_at=5) == 5
    assert (tmp_path / gpu_resume.CHECKPOINT).exists() and not (tmp_path / gpu_resume.END).exists()
    (tmp_path / gpu_resume.CHECKPOINT).write_bytes(b"")
    with pytest.raises(RuntimeError, match="a training ended with exit code 1: EOFError"):
        gpu_resume.train(WORK, tmp_path)


# -------------------------------------------------------------------------------------------------- ddp, predict


class Doubling(nn.Module):
    """Takes the place of DistributedDataParallel, with gradients that are twice what they should be."""

    def __init__(self, run: nn.Module) -> None:
        super().__init__()
        self.run = run

    def forward(self, *given: Tensor) -> Any:
        out = self.run(*given)
        parts = [2 * one - one.detach() for one in out] if isinstance(out, list) else 2 * out - out.detach()
        return parts


def test_ddp_finds_other_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ddp, "DistributedDataParallel", Doubling)
    assert failed(gpu_ddp) == [
        f"gloo, DistributedDataParallel {name} the fused network, against {other}"
        for name in ("around", "above")
        for other in ("fused alone", "plain")
    ]


def test_one_window_is_the_networks_prediction() -> None:
    image = torch.randn(1, *SMALL.patch)
    found = gpu_predict.predict(WORK, "fused", image, "float32")
    network, _ = make_contender("plain", SMALL.network, "cpu")
    with torch.no_grad():
        wanted = network.eval()(image[None])[0].softmax(0)
    torch.testing.assert_close(found.probabilities.transpose(0, 1), wanted, rtol=1e-4, atol=1e-5)
    assert (found.classes == wanted.argmax(0)).float().mean() > 0.999


def test_another_prediction_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(gpu_predict) == []

    def other(name: str, *given: Any) -> Any:
        network, run = make_contender(name, *given)
        if name == "fused":
            with torch.no_grad():
                network.heads[0].weight.neg_()
        return network, run

    monkeypatch.setattr(gpu_predict, "make_contender", other)
    assert failed(gpu_predict) == ["fused against plain"]


# -------------------------------------------------------------------------------------------------------- batch


@pytest.mark.parametrize("largest", range(9))
def test_the_largest_that_fits(largest: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= largest

    assert gpu_batch.largest_fitting(fits, 8) == largest
    assert len(tried) <= 4 and 0 not in tried


def test_a_batch_that_does_not_fit_is_told_from_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(network: Any, run: Any, x: Tensor, *given: Any) -> Any:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_step(network, run, x, *given)

    report = Report()
    monkeypatch.setattr(gpu_batch, "run_step", limited)
    gpu_batch.run(WORK, report)
    assert report.figures["fused"] == {"precision": "bfloat16", "largest": 2, "tried_to": 4}
    assert report.rows[0][:2] == ("plain, bfloat16", "2 of 8 x 16 x 16") and report.failures == []

    def broken(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu_batch, "run_step", broken)
    with pytest.raises(RuntimeError, match=r"plain, a step of \d patches: an illegal memory access"):
        gpu_batch.run(WORK, Report())
