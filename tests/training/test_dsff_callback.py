"""Invariants after every optimizer step of a sparse run, for all ways to make steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from e2enet.network import dsff
from e2enet.training.dsff_callback import DSFFCallback
from tests.training.conftest import first_gradients

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.01),
}


class Watch(pl.Callback):
    """Record masks after every batch, and check that everything inactive is exactly zero."""

    def __init__(self) -> None:
        self.masks: list[dict[str, Tensor]] = []
        self.moments = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        state = trainer.optimizers[0].state
        for layer in dsff.fusion_layers(pl_module).values():
            assert torch.all(layer.weight[~layer.kernel_mask] == 0)
            for value in state.get(layer.weight, {}).values():
                if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                    assert torch.all(value[~layer.kernel_mask] == 0)
                    assert torch.any(value[layer.kernel_mask] != 0)
                    self.moments += 1
        self.masks.append({n: m.kernel_mask.clone() for n, m in dsff.fusion_layers(pl_module).items()})


def counts(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_inactive_weights_and_moments_stay_zero(tiny_sparse, fit_tiny, optimizer: str, growth: str) -> None:
    module, watch = tiny_sparse(OPTIMIZERS[optimizer]), Watch()
    callback = DSFFCallback(0.5, update_every=2, growth=growth)
    fit_tiny(module, callback, watch, batches=7)
    assert callback.step == 7 and callback.num_updates == 3
    assert all(counts(masks) == {"first": 12, "second": 15} for masks in watch.masks)
    # One mask per update period: steps 1 | 2 3 | 4 5 | 6 7.
    changed = [differ(a, b) for a, b in zip(watch.masks, watch.masks[1:], strict=False)]
    assert changed == [True, False, True, False, True, False]
    assert watch.moments == 7 * 2 * (2 if optimizer == "adamw" else 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_regrown_kernels_start_with_zero_weights_and_moments(tiny_sparse, fit_tiny, optimizer: str) -> None:
    class Check(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            for layer, pruned in ((pl_module.first, 12), (pl_module.second, 15)) if batch_idx == 1 else ():
                zero = dsff.kernel_scores(layer.weight) == 0
                assert int(zero.sum()) == pruned and bool(layer.kernel_mask.all())
                for value in trainer.optimizers[0].state[layer.weight].values():
                    if value.shape == layer.weight.shape:
                        assert torch.all(value[zero] == 0) and torch.all(value[~zero].flatten(1).abs().sum(1) > 0)

    module = tiny_sparse(OPTIMIZERS[optimizer])
    # With density 1 every pruned kernel is regrown at once, so only the weights show it. The update is in the second
    # of 3 steps.
    callback = DSFFCallback(1.0, update_every=2, fraction_schedule="constant", fraction_initial=0.5)
    fit_tiny(module, callback, Check(), batches=3)
    assert callback.num_updates == 1


def test_no_update_follows_the_last_step(tiny_sparse, fit_tiny) -> None:
    callback = DSFFCallback(0.5, update_every=2)
    fit_tiny(tiny_sparse(OPTIMIZERS["sgd"]), callback, batches=3, max_steps=2)
    assert callback.step == 2 and callback.num_updates == 0


def test_a_run_without_an_update_is_told(tiny_sparse, fit_tiny, capsys: pytest.CaptureFixture[str]) -> None:
    fit_tiny(tiny_sparse(OPTIMIZERS["sgd"]), DSFFCallback(0.5, update_every=50), batches=3)
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: the masks stay as they were drawn" in said and "follow step 50" in said
    fit_tiny(tiny_sparse(OPTIMIZERS["sgd"]), DSFFCallback(0.5, updates=False), batches=3)
    fit_tiny(tiny_sparse(OPTIMIZERS["sgd"]), DSFFCallback(0.5, update_every=1), batches=3)
    assert "warning" not in capsys.readouterr().out


def test_a_density_that_has_not_fallen_is_told(tiny_sparse, fit_tiny, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"density_initial": 0.8, "update_every": 3}
    fit_tiny(tiny_sparse(OPTIMIZERS["sgd"]), DSFFCallback(0.4, **settings), batches=8)
    assert "warning" not in capsys.readouterr().out
    module = tiny_sparse(OPTIMIZERS["sgd"])
    callback = DSFFCallback(0.4, **settings)
    fit_tiny(module, callback, Early(5), batches=8)
    said = " ".join(capsys.readouterr().out.split())
    assert module.final_density == 0.4 < dsff.density(module)
    assert "more active kernels than dsff.density=0.4 means: 5 steps were taken" in said and "followed step 6" in said
    assert callback.excess(module) > 0 and DSFFCallback(0.4).excess(module) == 0


class Early(pl.Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def test_accumulated_batches_count_as_one_step(tiny_sparse, fit_tiny) -> None:
    module, watch = tiny_sparse(OPTIMIZERS["sgd"]), Watch()
    callback = DSFFCallback(0.5, update_every=1)
    fit_tiny(module, callback, watch, batches=6, accumulate_grad_batches=3)
    assert callback.step == 2 and callback.num_updates == 1
    assert [differ(watch.masks[0], masks) for masks in watch.masks] == [False, False, True, True, True, True]


def test_a_step_skipped_by_the_gradient_scaler_does_not_count(tiny_sparse, fit_tiny) -> None:
    module = tiny_sparse(OPTIMIZERS["sgd"])
    module.spoil_step = 1
    callback, watch = DSFFCallback(0.5, update_every=2), Watch()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = fit_tiny(module, callback, watch, batches=5, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert trainer.global_step == 5 and callback.step == 4
    # Steps are taken at batches 0, 2, 3, 4. An update follows the second step, at batch 2, but not the last one.
    assert callback.num_updates == 2
    assert [differ(watch.masks[0], masks) for masks in watch.masks] == [False, False, True, True, True]
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_dead_gradients_stay_out_of_the_clip_norm(tiny_sparse, fit_tiny) -> None:
    module = tiny_sparse(lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    gradients, norms = first_gradients(module), list[Tensor]()

    class Norms(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None]))

    dsff.init_masks(module, 0.5, generator=torch.Generator().manual_seed(3))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    fit_tiny(module, DSFFCallback(0.5, updates=False), Norms(), batches=1, gradient_clip_val=0.01)
    assert norms[0] > 0.01
    assert all(gradients[name][~layer.kernel_mask].any() for name, layer in dsff.fusion_layers(module).items())
    # Plain SGD with rate 1 moves the weights by the clipped gradient; its norm counts active kernels only.
    moved = torch.stack([(p.detach() - before[n]).norm() for n, p in module.named_parameters()]).norm()
    torch.testing.assert_close(moved, torch.tensor(0.01))


def test_gradient_growth_takes_the_largest_dead_gradients(tiny_sparse, fit_tiny) -> None:
    module, watch = tiny_sparse(OPTIMIZERS["sgd"]), Watch()
    gradients = first_gradients(module)
    callback = DSFFCallback(0.5, update_every=1, growth="gradient", fraction_schedule="constant", fraction_initial=0.4)
    dsff.init_masks(module, 0.5, generator=torch.Generator().manual_seed(3))
    first = {name: layer.kernel_mask.clone() for name, layer in dsff.fusion_layers(module).items()}
    fit_tiny(module, callback, watch, batches=2)
    assert set(gradients) == {"first", "second"}
    for name, gradient in gradients.items():
        score = dsff.kernel_scores(gradient)
        grown = watch.masks[0][name] & ~first[name]
        passed_over = ~watch.masks[0][name] & ~first[name]
        assert grown.any() and score[grown].min() >= score[passed_over].max() > 0


def test_resume_restores_counter_masks_and_history(tiny_sparse, fit_tiny, tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[Any, DSFFCallback, pl.Trainer]:
        module = tiny_sparse(OPTIMIZERS["adamw"])
        callback = DSFFCallback(0.5, update_every=2, fraction_schedule="constant", fraction_initial=0.3)
        trainer = fit_tiny(module, callback, batches=5, max_epochs=epochs, ckpt_path=ckpt_path)
        return module, callback, trainer

    whole, whole_callback, _ = run(2)
    _, _, trainer = run(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, callback, _ = run(2, tmp_path / "half.ckpt")
    assert callback.step == whole_callback.step == 10
    assert callback.num_updates == whole_callback.num_updates == 4
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    for name, mask in whole_callback.ever_active.items():
        assert torch.equal(callback.ever_active[name], mask)
    # Masks are stored with the weights, so loading needs no callback.
    plain = tiny_sparse(OPTIMIZERS["adamw"])
    plain.load_state_dict(torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"], strict=True)
    assert dsff.density(plain) == pytest.approx(0.5)


def test_masks_follow_the_seed_and_existing_masks_are_kept(tiny_sparse, fit_tiny) -> None:
    def masks(seed: int) -> Tensor:
        module = tiny_sparse(OPTIMIZERS["sgd"])
        fit_tiny(module, DSFFCallback(0.5, updates=False, seed=seed), batches=1)
        return module.first.kernel_mask

    assert torch.equal(masks(1), masks(1)) and not torch.equal(masks(1), masks(2))
    module = tiny_sparse(OPTIMIZERS["sgd"])
    dsff.init_masks(module, 0.25)
    fit_tiny(module, DSFFCallback(0.5, updates=False), batches=1)
    assert dsff.density(module) == pytest.approx(0.25, abs=0.02)


def test_periods_in_epochs_and_the_end_of_updates(tiny_sparse, fit_tiny) -> None:
    module = tiny_sparse(OPTIMIZERS["sgd"])
    callback = DSFFCallback(0.5, update_every=0.5, update_unit="epochs", update_until=0.5)
    fit_tiny(module, callback, batches=4, max_epochs=3)
    # 12 steps, a period of 2 steps, updates until step 6.
    assert callback.num_updates == 3
    assert callback.fraction(0) == pytest.approx(0.5) and callback.fraction(6) == pytest.approx(0.001)


def test_telemetry(tiny_sparse, fit_tiny) -> None:
    module = tiny_sparse(OPTIMIZERS["sgd"])
    callback = DSFFCallback(0.5, update_every=1)
    trainer = fit_tiny(module, callback, batches=4)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["dsff/density"] == pytest.approx(27 / 54)
    assert logged["dsff/ever_active"] > 0.5
    assert 0 < logged["dsff/churn"] <= 0.5
    active = module.first.kernel_mask[:, :2].sum() + module.second.kernel_mask[:, :3].sum()
    assert logged["dsff/density_forward"] == pytest.approx(float(active) / 27)
    assert {"dsff/share_up", "dsff/share_down", "dsff/fraction"} <= set(logged)


def test_a_network_without_fusion_layers_is_refused(fit_tiny, tiny_sparse) -> None:
    module = tiny_sparse(OPTIMIZERS["sgd"])
    del module.first.kernel_mask, module.second.kernel_mask
    with pytest.raises(ValueError, match="no fusion layers"):
        fit_tiny(module, DSFFCallback(0.5), batches=1)
