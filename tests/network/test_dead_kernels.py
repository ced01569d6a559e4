"""Inactive kernels stay dead for two kernels a step, without waiting for the device, whatever numbers they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from benchmarks.gpu_count import Count, Counter
from e2enet.network import DSFF, E2ENet
from e2enet.network.dead_kernels import DeadKernels, moments
from e2enet.network.dsff import expand_mask, fusion_layers, init_masks, register_fusion_layer


def counted(run: Callable[[], Any]) -> Count:
    with Counter() as counter:
        run()
    counter.count.by_operation.pop("aten::equal", None)  # masks are compared by value on a CPU only
    counter.count.kernels = sum(
        kernels for name, (kernels, _) in counter.count.by_operation.items() if not name.startswith("profiler::")
    )
    return counter.count


def network() -> E2ENet:
    torch.manual_seed(0)
    return E2ENet(1, 2, [(1, 2, 2), (2, 2, 2)], base_features=4).train()


def loss_of(model: nn.Module) -> Tensor:
    image = torch.rand(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    loss: Tensor = sum(head.square().mean() for head in model(image))  # type: ignore[assignment]
    return loss


@pytest.mark.parametrize(("kind", "moments_each"), [(SGD, 1), (AdamW, 2)])
def test_a_step_takes_two_kernels_more_and_no_wait(kind: Any, moments_each: int) -> None:
    model = network()
    options = {"momentum": 0.9, "foreach": True} if kind is SGD else {"foreach": True}
    optimizer = kind(model.parameters(), lr=0.1, **options)
    masks = DSFF(0.2, update_every=3, growth="gradient")

    def backward_and_step() -> tuple[Count, Count]:
        optimizer.zero_grad()
        loss = loss_of(model)
        backward = counted(loss.backward)
        return backward, counted(optimizer.step)

    backward_and_step()  # makes the optimizer's state
    plain = backward_and_step()
    layers = fusion_layers(model)
    assert len(layers) == 8
    with masks.attach(model, optimizer, total_steps=100):
        held = [backward_and_step() for _ in range(3)]
    assert masks.num_updates == 1 and all(len(moments(one, optimizer)) == moments_each for one in layers.values())
    for (backward, step), (plain_backward, plain_step) in zip(held[:2], [plain] * 2, strict=True):
        assert backward.kernels - plain_backward.kernels == 1 and step.kernels - plain_step.kernels == 1
        assert backward.waits == 0 and step.waits == plain_step.waits  # AdamW reads its steps, numbers on the host
    assert held[2][0].waits == 0  # growth by gradient sums without reading values
    # Empty kernels are searched after the update alone: that is where norms of kernels are taken.
    assert ["aten::abs" in step.by_operation for _, step in held] == [False, False, True]


def layer_of(dtype: torch.dtype) -> Any:
    layer = nn.Conv3d(3, 4, (1, 3, 3)).to(dtype)
    register_fusion_layer(layer)
    init_masks(layer, 0.5, generator=torch.Generator().manual_seed(0))
    return layer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_everything_inactive_becomes_zero_and_active_numbers_keep_their_bits(dtype: torch.dtype) -> None:
    layer = layer_of(dtype)
    inactive = ~expand_mask(layer.kernel_mask, layer.weight).expand_as(layer.weight)
    numbers = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, -1.5, 1e-7, 3e38], dtype=dtype)
    optimizer = SGD(layer.parameters(), lr=0.1)
    held = {"same": numbers, "double": numbers.double()}  # a moment may have another precision than the weight
    held = {name: value.repeat(16)[:108].view(4, 3, 1, 3, 3) for name, value in held.items()}
    optimizer.state[layer.weight] = {name: value.clone() for name, value in held.items()}
    optimizer.state[layer.weight]["step"] = torch.tensor(3.0)
    layer.weight.data.copy_(held["same"])
    layer.weight.grad = held["same"].clone()
    dead = DeadKernels(layer, lambda: False)
    dead.hold(optimizer)
    dead._zero_gradients()
    state = optimizer.state[layer.weight]
    for found, before in (
        (layer.weight.detach(), held["same"]),
        (layer.weight.grad, held["same"]),
        (state["same"], held["same"]),
        (state["double"], held["double"]),
    ):
        wide = {2: torch.int16, 4: torch.int32, 8: torch.int64}[before.element_size()]
        expected = before.masked_fill(inactive, 0.0)
        assert torch.equal(found.view(wide), expected.view(wide)) and found[~inactive].isnan().any()
    assert float(state["step"]) == 3.0


@pytest.mark.parametrize("through_data", [False, True])
def test_a_mask_written_in_place_holds_from_the_next_step(through_data: bool) -> None:
    layer = layer_of(torch.float32)
    optimizer = SGD(layer.parameters(), lr=0.1)
    with DSFF(0.5, updates=False).attach(layer, optimizer, total_steps=9):
        for turn in range(2):
            optimizer.zero_grad()
            layer(torch.rand(1, 3, 1, 4, 4)).sum().backward()
            optimizer.step()
            inactive = ~layer.kernel_mask
            assert not layer.weight.grad[inactive].any() and layer.weight.grad[~inactive].all()
            assert not layer.weight[inactive].any() and layer.weight[~inactive].any(), turn
            (layer.kernel_mask.data if through_data else layer.kernel_mask).copy_(inactive)


def test_gradients_are_zeroed_after_a_backward_pass_that_failed() -> None:
    layer = layer_of(torch.float32)
    masks = DSFF(0.5, updates=False).attach(layer, SGD(layer.parameters(), lr=0.1), total_steps=9)
    x = torch.rand(1, 3, 1, 4, 4, requires_grad=True)

    def fail(gradient: Tensor) -> None:
        raise MemoryError

    before = x * 1
    before.register_hook(fail)  # after the weight's gradient
    with pytest.raises(MemoryError):
        layer(before).sum().backward()
    layer.weight.grad = None
    layer(x).sum().backward()
    assert not layer.weight.grad[~layer.kernel_mask].any() and layer.weight.grad[layer.kernel_mask].all()
    masks.remove()
