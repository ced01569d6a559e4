"""Steps that a gradient scaler leaves out are counted, logged and told; a run that takes none any more ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.training.overflow import OverflowCounter
from tests.training.test_nonfinite import fit, make_module, samples


def train(
    folder: Path, spoilt: set[int], *, scale: float = 8.0, fused: bool = False, epochs: int = 1, steps: int = 4
) -> tuple[OverflowCounter, dict[str, float]]:
    """Train epochs of `steps` steps; those of the numbers in `spoilt` have infinite gradients."""
    module, counter = make_module(*([f"++optimizer.fused={fused}"])), OverflowCounter()
    calls: list[int] = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) - 1 in spoilt else gradient

    next(module.network.parameters()).register_hook(spoil)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    trainer = fit(module, folder, samples(range(2 * steps)), counter, plugins=plugins, max_epochs=epochs)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return counter, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("fused", [False, True])
def test_steps_left_out_are_told_and_logged(fused: bool, tmp_path: Path, capsys: Any) -> None:
    counter, metrics = train(tmp_path, {0, 2}, fused=fused)
    told = "epoch 1: 2 of 4 optimizer steps left out, their gradients overflowed float16 (the loss scale is now 2)\n"
    assert told in capsys.readouterr().out
    assert metrics["train/overflows"] == 2.0 and counter.state_dict() == {"tried": 4, "taken": 2}


def test_nothing_is_told_of_epochs_without(tmp_path: Path, capsys: Any) -> None:
    _, metrics = train(tmp_path, set(), epochs=2)
    assert metrics["train/overflows"] == 0.0 and "left out" not in capsys.readouterr().out
    _, metrics = train(tmp_path, {1}, epochs=2)  # the second epoch counts anew
    assert metrics["train/overflows"] == 0.0 and "epoch 1: 1 of 4 optimizer" in capsys.readouterr().out


def test_an_epoch_without_a_step_is_warned_of_and_ends_the_run_once_nothing_is_scaled_up(
    tmp_path: Path, capsys: Any
) -> None:
    train(tmp_path, {*range(4)}, scale=64.0)
    told = capsys.readouterr().out
    assert "4 of 4 optimizer steps left out" in told and "nothing was trained in this epoch" in told
    with pytest.raises(InputError, match=r"epoch 2: 4 of 4 .* now 0\.25\)\. Finite gradients are expected: lower"):
        train(tmp_path, {*range(8)}, scale=64.0, epochs=3)


def test_without_a_scaler_nothing_is_counted(tmp_path: Path) -> None:
    trainer = fit(make_module(), tmp_path, samples(range(4)), OverflowCounter())
    assert "train/overflows" not in trainer.callback_metrics


def test_counts_of_a_begun_epoch_are_resumed() -> None:
    counter, other = OverflowCounter(), OverflowCounter()
    counter.load_state_dict({"tried": 5, "taken": 3})
    other.load_state_dict(counter.state_dict())
    assert other.state_dict() == {"tried": 5, "taken": 3}
