"""What a training step does beside forward and backward: no wait for the device, one gradient norm, late errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from benchmarks.gpu_count import Count, Counter
from e2enet.common.errors import InputError
from e2enet.training import nonfinite
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.overflow import OverflowCounter
from tests.training.conftest import differences
from tests.training.test_nonfinite import MOMENTUM, fit, make_module, records, samples, weights


class CountBatches(pl.Callback):
    """Count the operations of every batch: the training step, backward pass, clipping and optimizer step."""

    def __init__(self) -> None:
        self.counts: list[Count] = []
        self.counter = Counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.counter = Counter()
        self.counter.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.counter.__exit__(None, None, None)
        self.counts.append(self.counter.count)


def norms_of(count: Count) -> int:
    return count.by_operation.get("aten::_foreach_norm", [0])[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_never_waits_and_takes_one_norm(accumulate: int, tmp_path: Path) -> None:
    def counts(late: bool) -> tuple[list[Count], dict[str, Tensor]]:
        module, count = make_module(*MOMENTUM), CountBatches()  # AdamW reads its steps, numbers on the host
        module.guard.reads_late = late
        masks = DSFFCallback(0.5, update_every=100)
        # Five batches: with `accumulate` the last step has fewer, and its gradients are scaled.
        fit(
            module,
            tmp_path,
            samples(range(10)),
            masks,
            count,
            gradient_clip_val=0.1,
            accumulate_grad_batches=accumulate,
        )
        return count.counts[1:], weights(module)  # the first step selects what runs the network

    late, found = counts(late=True)
    at_once, expected = counts(late=False)
    assert [count.waits for count in late] == [0] * 4
    steps = {1: 4, 2: 3}[accumulate]
    assert sum(count.waits for count in at_once) == 4 + steps  # each loss and each norm
    assert sum(map(norms_of, late)) == sum(map(norms_of, at_once)) == steps
    assert differences(found, expected) == []


@pytest.mark.parametrize("fused", [False, True])
def test_only_the_gradient_scaler_itself_waits(fused: bool, tmp_path: Path) -> None:
    """It reads whether to call an optimizer, unless that is a fused one."""

    def run(*, every: int, warmup: int | None = None) -> tuple[list[int], DSFFCallback]:
        module, count = make_module(*MOMENTUM, f"++optimizer.fused={fused}"), CountBatches()
        calls: list[int] = []

        def spoil(gradient: Tensor) -> Tensor:
            calls.append(1)
            return gradient * float("inf") if len(calls) in (2, 5) else gradient

        next(module.network.parameters()).register_hook(spoil)
        module.guard.reads_late = True
        masks = DSFFCallback(0.5, update_every=every, growth="gradient", regrown_warmup=warmup)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        clip: dict[str, Any] = {} if fused else {"gradient_clip_val": 1.0}  # Lightning refuses both
        fit(module, tmp_path, samples(range(20)), masks, count, OverflowCounter(), plugins=plugins, **clip)
        assert masks.step == 10 - 2
        return [own.waits for own in count.counts[1:]], masks

    waits, masks = run(every=100)
    assert waits == [0 if fused else 1] * 9 and masks.num_updates == 0
    for warmup in (None, 2):
        assert run(every=3, warmup=warmup)[1].num_updates == 2  # after steps 3 and 6 of those taken


def test_clipping_counts_what_a_callback_changed(tmp_path: Path) -> None:
    class Double(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(2)

    sgd = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=1.0", "~optimizer.weight_decay"]
    module = make_module(*sgd)
    before = weights(module)
    fit(module, tmp_path, samples(range(2)), Double(), gradient_clip_val=1e-3)
    moved = [value - before[name] for name, value in module.named_parameters()]
    assert float(nn.utils.get_total_norm(moved)) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("late", [False, True])
def test_clipping_is_lightnings(algorithm: str, late: bool, tmp_path: Path, monkeypatch: Any) -> None:
    def run() -> dict[str, Tensor]:
        module = make_module(*MOMENTUM)
        module.guard.reads_late = late
        clip: dict[str, Any] = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
        fit(module, tmp_path, samples(range(6)), **clip)
        return weights(module)

    found = run()
    monkeypatch.setattr(nonfinite.NonFiniteGuard, "take_norm", lambda *_: None)  # so that Lightning clips
    assert differences(found, run()) == []


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", [[], MOMENTUM], ids=["AdamW", "SGD"])
def test_a_late_error_names_its_batch_and_finds_finite_weights(what: str, optimizer: list[str], tmp_path: Path) -> None:
    module, count = make_module(*optimizer), CountBatches()
    module.guard.reads_late = True
    if what == "gradient":
        calls: list[int] = []

        def spoil(gradient: Tensor) -> Tensor:
            calls.append(1)
            return gradient * float("nan") if len(calls) == 3 else gradient

        next(module.network.parameters()).register_hook(spoil)
    data = samples(range(12), bad=[5] if what == "loss" else [])
    try:
        with pytest.raises(InputError) as caught:
            fit(module, tmp_path, data, DSFFCallback(0.5, update_every=2), count, gradient_clip_val=1.0)
    finally:
        count.counter.__exit__(None, None, None)
    assert len(count.counts) == 3  # told in the step after the bad one, before it moves the weights
    name = "loss" if what == "loss" else "gradient norm"
    assert f"{name} is nan at epoch 0, batch 2, cases case_4, case_5: statistics of" in str(caught.value)
    (record,) = records(tmp_path)
    assert (record["epoch"], record["batch"], record["step"]) == (0, 2, 2)
    assert record["nonfinite_weights"] == {"count": 0, "first": []}
    assert record["cases"][1]["channels"][0]["nonfinite_voxels"] == (what == "loss")
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("kept", ["checkpoint", "validation", "epoch", "end"])
def test_nothing_of_a_bad_step_is_kept(kept: str, tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    ended: list[int] = []

    class End(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            ended.append(trainer.current_epoch)

    module = make_module()
    module.guard.reads_late = True
    # The last batch of an epoch, or of a run that stops within an epoch, is bad: no step follows that tells of it.
    number = 6 if kept in ("checkpoint", "end") else 4
    callbacks = [End(), *([Save()] if kept == "checkpoint" else [])]
    options = {"max_steps": 2} if kept == "end" else {"max_epochs": 2}
    with pytest.raises(InputError, match=r"loss is nan at epoch 0, batch 1, cases case_2, case_3"):
        if kept == "validation":
            module.guard.settle(module)  # nothing to judge yet
            module.on_train_epoch_end = lambda: module.on_validation_start()  # type: ignore[method-assign]
            module.guard.end_epoch = lambda module: None  # type: ignore[method-assign]
        fit(module, tmp_path, samples(range(number), bad=[3]), *callbacks, **options)
    assert ended == ([] if kept in ("checkpoint", "epoch") else [0])
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == (["1.ckpt"] if kept == "checkpoint" else [])


def test_a_batch_that_may_be_left_out_is_known_at_once(tmp_path: Path) -> None:
    module = make_module("training.skip_nonfinite=1")
    module.guard.reads_late = True
    fit(module, tmp_path, samples(range(6), bad=[3]))
    other = make_module()
    fit(other, tmp_path, samples([0, 1, 4, 5]))
    assert differences(weights(module), weights(other)) == []


def test_gradients_of_a_bad_step_become_zero_whatever_they_hold() -> None:
    numbers = torch.tensor([float("nan"), float("inf"), -2.0])
    gradients = [numbers.clone(), numbers.double(), numbers.half()]
    nonfinite.zero_unless(gradients, torch.tensor(True))
    assert all(str(gradient.tolist()) == "[nan, inf, -2.0]" for gradient in gradients)
    nonfinite.zero_unless(gradients, torch.tensor(False))
    assert all(gradient.tolist() == [0, 0, 0] for gradient in gradients)
