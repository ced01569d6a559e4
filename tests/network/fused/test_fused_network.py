"""The fused pass against the network: logits and gradients in float64, precision, masks, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.network import E2ENet
from e2enet.network.dsff import expand_mask, fusion_layers, init_masks, set_group_size, update_masks
from e2enet.network.fused.grouped import grouped_layers
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.layers import to_channels_last

STRIDES = [(1, 2, 2), (2, 2, 2), (2, 2, 1)]
SIZE = (8, 16, 8)


def make(dtype: torch.dtype = torch.float64, **arguments: Any) -> E2ENet:
    torch.manual_seed(0)
    model = E2ENet(2, 3, **{"strides": STRIDES, "base_features": 6, **arguments}).to(dtype)
    if arguments.get("fusion", "grid") == "grid":
        init_masks(model, 0.4, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if ".norm." in name:
            nn.init.normal_(parameter, 1, 0.3)
    return model.train()


def image(model: E2ENet, batch: int = 2, size: tuple[int, ...] = SIZE) -> Tensor:
    dtype = next(model.parameters()).dtype
    draw = torch.Generator().manual_seed(1)
    return to_channels_last(torch.randn(batch, model.in_channels, *size, dtype=torch.float64, generator=draw).to(dtype))


def step(model: E2ENet, run: Any, x: Tensor, heads: int | None = None) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Return logits and gradients for a fixed gradient of the first `heads` logits."""
    model.zero_grad()
    found = run(x)
    logits = list(found) if isinstance(found, list) else [found]
    draw = torch.Generator().manual_seed(2)
    grads = [torch.randn(one.shape, dtype=torch.float64, generator=draw).to(one.dtype) for one in logits]
    torch.autograd.backward(logits[:heads], grads[:heads])
    return [one.detach() for one in logits], {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


def name_of(model: E2ENet, layer: nn.Module) -> str:
    return next(f"{name}.weight" for name, module in model.named_modules() if module is layer)


def in_groups(model: E2ENet, density: float = 0.4) -> None:
    """Draw masks that groups of four output channels share; the last group of six is smaller."""
    for layer in fusion_layers(model).values():
        layer.kernel_mask.fill_(True)
    set_group_size(model, 4)
    init_masks(model, density, generator=torch.Generator().manual_seed(0))


def assert_same(
    model: E2ENet,
    x: Tensor,
    *,
    heads: int | None = None,
    run: Any = None,
    tolerance: float = 1e-10,
    active_only: bool = False,
) -> None:
    """Compare logits and gradients; `active_only`: inactive kernels of convolutions have gradient zero."""
    expected, wanted = step(model, model, x, heads)
    for layer in grouped_layers(model) if active_only else ():
        wanted[name_of(model, layer)].mul_(expand_mask(layer.kernel_mask, layer.weight))  # type: ignore[union-attr]
    found, grads = step(model, run or FusedNetwork(model), x, heads)
    assert len(found) == len(expected)
    for own, logits in zip(found, expected, strict=True):
        assert own.shape == logits.shape and own.dtype == logits.dtype
        torch.testing.assert_close(own, logits, rtol=tolerance, atol=tolerance)
    for name, grad in wanted.items():
        own = grads[name]
        if grad is None or own is None:
            assert grad is own, name
        else:
            scale = max(1.0, float(grad.abs().max()))
            torch.testing.assert_close(own / scale, grad / scale, rtol=0, atol=10 * tolerance, msg=name)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shift_size": 1},
        {"shift_size": 5},
        {"kernel_size": (3, 3, 3)},
        {"kernel_size": (3, 1, 3)},
        {"kernel_size": (3, 3, 1)},
        {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3), "shift_size": 1},
        {"shift_input": True},
        {"fusion": "unet"},
        {"deep_supervision": False},
        {"strides": [(3, 1, 2), (1, 4, 1)], "in_channels": 2},
        {"strides": [(2, 2, 2)]},
        {"strides": [(1, 1, 1), (2, 1, 2)]},
    ],
    ids=str,
)
def test_logits_and_gradients_are_the_networks(arguments: dict[str, Any]) -> None:
    arguments.pop("in_channels", None)
    model = make(**arguments)
    assert_same(model, image(model, size=(6, 16, 8) if "strides" in arguments else SIZE))


def test_fixed_weights_are_read_once_for_each_dtype_and_anew_with_gradients() -> None:
    model = make(torch.float32)
    x, run, fixed = image(model), FusedNetwork(model), FusedNetwork(model, fixed=True)
    with torch.no_grad():
        before, rounded = fixed(x)[0], FusedNetwork(model, dtype=torch.bfloat16)(x)[0]
        assert torch.equal(before, run(x)[0])
        model.heads[0].weight.mul_(2)
        assert torch.equal(fixed(x)[0], before) and torch.equal(run(x)[0], 2 * before)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fixed(x)[0], 2 * rounded)
    assert torch.equal(fixed(x)[0].detach(), 2 * before)


@pytest.mark.parametrize("arguments", [{}, {"kernel_size": (3, 3, 3)}, {"shift_size": 5, "base_features": 9}], ids=str)
def test_groups_multiply_their_own_inputs_alone(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(**arguments)
    in_groups(model)
    groups: list[int] = []
    for name in ("conv2d", "conv3d"):
        convolve = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *args, own=convolve, **kwargs: groups.append(kwargs["groups"]) or own(*args, **kwargs)
        )
    fused, x = FusedNetwork(model, groups=True), image(model)
    assert_same(model, x, run=fused, active_only=True)
    assert len([count for count in groups if count > 1]) == len(grouped_layers(model)) > 5
    assert_same(model, x, run=FusedNetwork(model))  # without groups every kernel has its gradient
    update_masks(model, 0.5, generator=torch.Generator().manual_seed(3))
    assert_same(model, x, run=fused, active_only=True)
    layer = grouped_layers(model)[0]
    layer.kernel_mask[0] = ~layer.kernel_mask[0]  # no group structure: it runs as every block does
    loss = fused(x)[0].square().mean()
    loss.backward()
    expected = model(x)[0].square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)


def test_a_pass_goes_backward_by_the_masks_of_its_forward_pass() -> None:
    model = make()
    in_groups(model)
    x, fused = image(model), FusedNetwork(model, groups=True)
    _, wanted = step(model, fused, x)
    model.zero_grad()
    logits = fused(x)
    for layer in fusion_layers(model).values():
        layer.kernel_mask.copy_(~layer.kernel_mask)
    draw = torch.Generator().manual_seed(2)
    grads = [torch.randn(one.shape, dtype=torch.float64, generator=draw) for one in logits]
    torch.autograd.backward(logits, grads)
    for name, parameter in model.named_parameters():
        expected = wanted[name]
        assert (parameter.grad is None) == (expected is None)
        if expected is not None:
            assert torch.equal(parameter.grad, expected), name  # type: ignore[arg-type]


def test_any_number_of_samples_and_odd_sizes() -> None:
    model = make(strides=[(1, 2, 2), (1, 1, 2)])
    for batch, size in ((1, (1, 6, 4)), (3, (5, 10, 12)), (2, (7, 2, 20))):
        assert_same(model, image(model, batch, size))


def test_heads_without_a_gradient() -> None:
    model = make()
    assert_same(model, image(model), heads=1)


def test_eval_mode_and_no_gradients() -> None:
    model = make().eval()
    x, fused = image(model), FusedNetwork(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)
        model.deep_supervision_in_eval = True
        found, expected = fused(x), model(x)
    assert len(found) == len(expected) == 2
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not found[0].requires_grad


def test_masks_and_weights_are_read_at_every_step() -> None:
    model = make()
    fused, x = FusedNetwork(model), image(model)
    assert_same(model, x, run=fused)
    update_masks(model, 0.5, generator=torch.Generator().manual_seed(3))
    assert_same(model, x, run=fused)
    layer: Any = next(iter(fusion_layers(model).values()))
    inactive = ~layer.kernel_mask
    layer.weight.data[inactive] = torch.nan  # a mask acts whatever the weight holds
    assert_same(model, x, run=fused)
    assert torch.isfinite(fused(x)[0]).all()


def test_it_follows_mode_and_shift() -> None:
    model = make()
    fused, x = FusedNetwork(model), image(model)
    assert len(fused(x)) == 2
    assert isinstance(fused.train(False)(x), Tensor)  # the network's mode follows
    fused.train()
    block: Any = model.encoder[1][0]  # type: ignore[index]
    block.shift_size = 1
    assert_same(model, x, run=fused)


def test_float32_is_as_close_to_float64_as_the_network() -> None:
    model = make(torch.float32)
    x, wide = image(model), copy.deepcopy(model).double()
    logits, truth = step(wide, wide, x.double())

    def error(run: Any) -> tuple[float, float]:
        found, grads = step(model, run, x)
        wrong = [float((grad.double() - truth[name]).norm() / truth[name].norm()) for name, grad in grads.items()
                 if grad is not None and ".conv.bias" not in name and truth[name] is not None]  # fmt: skip
        return float((found[0].double() - logits[0]).abs().max()), max(wrong)

    plain, fused = error(model), error(FusedNetwork(model))
    assert fused[0] <= 3 * plain[0] + 1e-6 and fused[1] <= 3 * plain[1] + 1e-6, (plain, fused)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_by_autocast(dtype: torch.dtype) -> None:
    model = make(torch.float32)
    x, wide = image(model), copy.deepcopy(model).double()
    logits, truth = step(wide, wide, x.double())
    with torch.autocast("cpu", dtype):
        found, grads = step(model, FusedNetwork(model), x)
    assert found[0].dtype == dtype
    # Rounding in a network of 20 layers, not a wrong term: the direction of every gradient is right.
    limit = {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert float((found[0].double() - logits[0]).norm() / logits[0].norm()) < limit
    for name, grad in grads.items():
        if grad is not None and ".conv.bias" not in name:
            assert grad.dtype == torch.float32
            alike = torch.nn.functional.cosine_similarity(grad.double().flatten(), truth[name].flatten(), dim=0)
            assert float(alike) > 1 - 5 * limit, name


def test_a_precision_of_its_own() -> None:
    model = make(torch.float32)
    x = image(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected, wanted = step(model, FusedNetwork(model), x)
    found, grads = step(model, FusedNetwork(model, dtype=torch.bfloat16), x)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(grad is None or torch.equal(grad, wanted[name]) for name, grad in grads.items())  # type: ignore[arg-type]


def test_autograd_itself_keeps_input_and_parameters_alone() -> None:
    model = make(torch.float32)
    x = image(model)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        FusedNetwork(model)(x)
    # They are kept to see whether they were changed.
    assert {one.data_ptr() for one in kept} <= {x.data_ptr(), *(p.data_ptr() for p in model.parameters())}


def test_wrong_use_is_told() -> None:
    model = make()
    fused, x = FusedNetwork(model), image(model)
    with pytest.raises(ValueError, match="expected an input"):
        fused(x[:, :1])
    with pytest.raises(ValueError, match="gives its input no gradient"):
        fused(x.clone().requires_grad_())
    loss = fused(x)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="going backward a second time"):
        loss.backward()
    loss = fused(x)[0].sum()
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True, allow_unused=True)
    loss = fused(x)[0].sum()
    with torch.no_grad():
        model.heads[0].weight.add_(1)  # type: ignore[union-attr,operator]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    layer: Any = next(iter(fusion_layers(model).values()))
    layer.kernel_mask = layer.kernel_mask.float()
    with pytest.raises(InputError, match=r"has a kernel_mask of torch\.float32"):
        fused(x)


def test_another_network_is_refused() -> None:
    class Other(E2ENet):
        pass

    with pytest.raises(InputError, match="cannot run this network: Other is a class made of E2ENet"):
        FusedNetwork(Other(1, 2, [(1, 2, 2)], base_features=4))
    strides = [(1, 2, 2), (1, 16, 32), (1, 1, 2)]
    with pytest.raises(InputError, match=r"down: the fused pass pools at most 256 voxels to one, not 1 x 16 x 32"):
        FusedNetwork(make(strides=strides))
    assert FusedNetwork(make(strides=[(1, 2, 2), (1, 16, 16), (1, 1, 2)]))
    model = make()
    model.heads.float()
    with pytest.raises(InputError, match=r"of several kinds: torch.float64 on cpu, torch.float32 on cpu"):
        FusedNetwork(model)
    model = make()
    fused = FusedNetwork(model)
    model.encoder[0].register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"its encoder\.0 has a hook"):
        fused(image(model))
