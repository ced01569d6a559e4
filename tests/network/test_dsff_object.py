"""`DSFF` in plain training loops: the same bits as in Lightning, growth by whole gradients, and removable hooks.

Two processes are tested in tests/training/test_ddp.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from e2enet.network import DSFF, dsff
from e2enet.training.dsff_callback import DSFFCallback
from tests.training.conftest import TinySparse, differences, quiet_trainer

GRADIENT: dict[str, Any] = {"growth": "gradient", "fraction_schedule": "constant", "fraction_initial": 0.4}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return AdamW(parameters, lr=0.1, weight_decay=0.01)


def batches(number: int) -> Tensor:
    return torch.randn(number, 2, 4, 2, 5, 5, generator=torch.Generator().manual_seed(1))


def train(
    model: TinySparse,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Run an epoch of an ordinary loop that knows nothing of masks. The last step may have fewer batches."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    precision = torch.autocast("cpu", torch.float16) if scaler.is_enabled() else nullcontext()
    for index, image in enumerate(images):
        with precision:
            loss = model.training_step([image], index)
        scaler.scale(loss / accumulate).backward()
        if (index + 1) % accumulate == 0 or index + 1 == len(images):
            scaler.unscale_(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def train_in_lightning(
    model: TinySparse, masks: DSFFCallback, images: Tensor, folder: Path, **options: Any
) -> dict[str, Any]:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images.flatten(0, 1)), batch_size=2)
    trainer = quiet_trainer(folder, masks, **options)
    trainer.fit(model, loader)
    trainer.save_checkpoint(folder / "end.ckpt")
    return torch.load(folder / "end.ckpt", weights_only=True)


def assert_dead(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Assert that inactive weights and moments are exactly zero, and that active ones are not all zero."""
    for layer in dsff.fusion_layers(model).values():
        state = optimizer.state.get(layer.weight, {}).values()
        for tensor in (layer.weight, *(value for value in state if value.shape == layer.weight.shape)):
            assert not tensor[~layer.kernel_mask].any() and tensor[layer.kernel_mask].any()


@pytest.mark.parametrize(
    ("settings", "make_optimizer", "accumulate", "clip", "spoilt"),
    [
        ({"update_every": 2}, sgd, 1, None, None),
        ({"update_every": 0.25, "update_unit": "epochs", "start": "erk", "seed": 3}, adamw, 1, 0.01, None),
        ({"update_every": 2, **GRADIENT}, sgd, 1, 0.01, None),
        ({"update_every": 2, "granularity": "group", "group_size": 4, **GRADIENT}, adamw, 3, 0.01, None),
        ({"update_every": 2, **GRADIENT}, sgd, 1, 0.01, 1),
        ({"update_every": 2}, adamw, 2, None, 3),
    ],
    ids=["random", "epochs", "gradient", "groups", "scaled", "scaled-accumulated"],
)
def test_a_plain_loop_ends_in_the_bits_of_lightning(
    settings: dict[str, Any],
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    accumulate: int,
    clip: float | None,
    spoilt: int | None,
    tmp_path: Path,
) -> None:
    images, options = batches(11), {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    scalers = [None if spoilt is None else torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    if scalers[0] is not None:
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scalers[0])]
    expected_model, callback = TinySparse(make_optimizer), DSFFCallback(0.5, **settings)
    model, masks = TinySparse(make_optimizer), DSFF(0.5, **settings)
    model.spoil_step = expected_model.spoil_step = spoilt
    expected = train_in_lightning(expected_model, callback, images, tmp_path, **options)
    optimizer = make_optimizer(model.parameters())
    steps = -(-len(images) // accumulate)
    with masks.attach(model, optimizer, total_steps=steps, epochs=1):
        train(model, optimizer, images, accumulate=accumulate, clip=clip, scaler=scalers[1])
    assert masks.step == steps - (spoilt is not None) and masks.num_updates >= 1
    assert differences(model.state_dict(), expected["state_dict"]) == []
    assert differences(optimizer.state_dict()["state"], expected["optimizer_states"][0]["state"]) == []
    assert differences(masks.state_dict(), expected["callbacks"]["DSFFCallback"]) == []
    assert_dead(model, optimizer)
    assert masks.share_ever_active() == callback.share_ever_active() > 0.5 == dsff.density(model)


def test_gradients_are_zero_before_anyone_clips_them() -> None:
    model, images = TinySparse(sgd), batches(2)
    optimizer = sgd(model.parameters())
    plain = copy.deepcopy(model)  # without hooks
    DSFF(0.5, update_every=1, growth="gradient").attach(model, optimizer, total_steps=9)
    plain.load_state_dict(model.state_dict())
    for image in images:  # accumulated in a step with gradient growth
        for one in (model, plain):
            one.training_step([image], 0).backward()
        for name, layer in dsff.fusion_layers(plain).items():
            found, dead = model.get_submodule(name).weight.grad, ~layer.kernel_mask
            assert layer.weight.grad[dead].abs().sum() > 0 and not found[dead].any()
            assert torch.equal(found[~dead], layer.weight.grad[~dead])
            layer.weight.grad[dead] = 0
    norms = [nn.utils.clip_grad_norm_(one.parameters(), 1e-3) for one in (model, plain)]
    assert norms[0] == norms[1] > 1e-3


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("given_up", [False, True])
def test_growth_is_by_the_whole_gradient_of_the_steps_own_batches(to_none: bool, given_up: bool) -> None:
    model, images = TinySparse(sgd), batches(4)
    optimizer = sgd(model.parameters())
    masks = DSFF(0.5, update_every=2, **GRADIENT).attach(model, optimizer, total_steps=9)
    assert not masks.wants_dense_gradients
    train(model, optimizer, images[:1])
    assert masks.wants_dense_gradients and masks.step == 1
    expected = copy.deepcopy(model)
    if given_up:  # a batch without an optimizer step, as after infinite gradients
        (1e3 * model.training_step([images[1].flip(1)], 0)).backward()
        optimizer.zero_grad(set_to_none=to_none)
    for image in images[2:]:
        model.training_step([image], 0).backward()
        expected.training_step([image], 0).backward()
    scores = {name: dsff.kernel_scores(layer.weight.grad) for name, layer in dsff.fusion_layers(expected).items()}
    optimizer.step()
    for (name, layer), other in zip(
        dsff.fusion_layers(model).items(), dsff.fusion_layers(expected).values(), strict=True
    ):
        grown, passed = layer.kernel_mask & ~other.kernel_mask, ~layer.kernel_mask & ~other.kernel_mask
        assert grown.any() and scores[name][grown].min() >= scores[name][passed].max() > 0
    assert masks.num_updates == 1 and not masks.wants_dense_gradients


def test_a_kernel_whose_gradient_is_not_a_number_does_not_grow() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3)))
    dsff.register_fusion_layer(model[0])
    model[0].kernel_mask[:, 2] = False  # nothing reads this input, and its gradient is NaN
    model[0].kernel_mask[0, 1] = False
    optimizer = SGD(model.parameters(), lr=0.1)
    model[0].weight.register_hook(lambda gradient: gradient.index_fill(1, torch.tensor([2]), float("nan")))
    masks = DSFF(update_every=1, **GRADIENT).attach(model, optimizer, total_steps=9)
    model(torch.rand(1, 3, 1, 4, 4)).sum().backward()
    optimizer.step()
    assert masks.num_updates == 1 and not model[0].kernel_mask[:, 2].any()
    assert torch.isfinite(model[0].weight).all() and int(model[0].kernel_mask.sum()) == 7


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_does_not_count(fused: bool) -> None:
    model, images = TinySparse(sgd), batches(5)
    optimizer = AdamW(model.parameters(), lr=0.1, fused=fused)
    model.spoil_step = 1
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    masks = DSFF(0.5, update_every=2).attach(model, optimizer, total_steps=5)
    train(model, optimizer, images, scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    assert len(calls) == (5 if fused else 4)  # a fused optimizer is called and skips the step itself
    assert masks.step == 4 and masks.num_updates == 2
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert_dead(model, optimizer)


def test_a_closure_is_taken_as_well() -> None:
    def run(with_closure: bool) -> dict[str, Tensor]:
        model = TinySparse(sgd)
        optimizer = sgd(model.parameters())
        DSFF(0.5, update_every=1, **GRADIENT).attach(model, optimizer, total_steps=4)
        for image in batches(4):

            def closure(image: Tensor = image) -> float:
                optimizer.zero_grad()
                loss = model.training_step([image], 0)
                loss.backward()
                return float(loss.detach())

            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        return model.state_dict()

    assert differences(run(True), run(False)) == []


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_a_run_goes_on_from_its_states_as_if_it_had_not_stopped(growth: str, tmp_path: Path) -> None:
    images = batches(10)

    def begin() -> tuple[TinySparse, torch.optim.Optimizer, DSFF]:
        model = TinySparse(adamw)
        return model, adamw(model.parameters()), DSFF(0.5, update_every=2, growth=growth, update_until=0.8)

    model, optimizer, masks = begin()
    with masks.attach(model, optimizer, total_steps=10):
        train(model, optimizer, images[:5])
        parts = {"model": model, "optimizer": optimizer, "masks": masks}
        torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "half.pt")
        train(model, optimizer, images[5:])
    whole = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    assert whole["masks"]["num_updates"] == 4

    other, other_optimizer, other_masks = begin()
    parts = {"model": other, "optimizer": other_optimizer, "masks": other_masks}
    for name, state in torch.load(tmp_path / "half.pt", weights_only=True).items():
        parts[name].load_state_dict(state)
    with other_masks.attach(other, other_optimizer, total_steps=10):
        train(other, other_optimizer, images[5:])
    assert differences({name: part.state_dict() for name, part in parts.items()}, whole) == []


def test_what_is_removed_holds_nothing_any_more() -> None:
    model, images = TinySparse(sgd), batches(3)
    optimizer = sgd(model.parameters())
    with DSFF(0.5, update_every=1, growth="gradient").attach(model, optimizer, total_steps=9) as masks:
        train(model, optimizer, images[:1])
        assert masks.step == masks.num_updates == 1
    before = {name: layer.kernel_mask.clone() for name, layer in dsff.fusion_layers(model).items()}
    model.training_step([images[1]], 0).backward()
    for name, layer in dsff.fusion_layers(model).items():
        assert layer.weight.grad[~layer.kernel_mask].any()
        assert not layer.weight._backward_hooks and not layer.weight._post_accumulate_grad_hooks
        assert torch.equal(layer.kernel_mask, before[name])
    optimizer.step()
    assert all(layer.weight[~layer.kernel_mask].any() for layer in dsff.fusion_layers(model).values())
    assert masks.step == 1 and not optimizer._optimizer_step_post_hooks
    masks.remove()  # a second call does nothing
    optimizer.zero_grad()
    masks.attach(model, optimizer, total_steps=9)  # keeps the current masks
    assert_dead(model, optimizer)
    train(model, optimizer, images[2:])
    assert masks.step == masks.num_updates == 2
