"""Recomputed activations: identical gradients in every variant of the network, with less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from e2enet.common.errors import InputError
from e2enet.network import E2ENet, recompute
from e2enet.network.baselines import DynUNet
from e2enet.network.dsff import fusion_layers, init_masks
from e2enet.network.recompute import checkpoint_activations, run_once

STRIDES = [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"shift_size": 5, "shift_input": True},
    {"kernel_size": (3, 1, 3)},
    {"kernel_size": (3, 3, 1)},
    {"kernel_size": (3, 3, 3)},
    {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3)},
    {"deep_supervision": False},
    {"fusion": "unet"},
    {"fusion": "unet", "deep_supervision": False},
]


def pair(**settings: Any) -> tuple[E2ENet, E2ENet]:
    """Return a network that keeps its activations, and a copy that recomputes them; a third of kernels is masked."""
    torch.manual_seed(0)
    kept = E2ENet(1, 3, STRIDES, base_features=4, max_features=12, **settings)
    if fusion_layers(kept):
        init_masks(kept, density=0.67, generator=torch.Generator().manual_seed(1))
    recomputed = copy.deepcopy(kept)
    checkpoint_activations(recomputed)
    return kept, recomputed


def patch(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 4, 16, 16, generator=torch.Generator().manual_seed(2))


def gradients(network: nn.Module, dtype: torch.dtype | None = None) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the logits of every head, and the gradient of every parameter that requires one."""
    network.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = network(patch())
    heads = [output] if isinstance(output, Tensor) else output
    sum(head.float().square().mean() for head in heads).backward()  # type: ignore[union-attr]
    return heads, {
        name: parameter.grad.clone()  # type: ignore[union-attr]
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def assert_equal(one: nn.Module, other: nn.Module, dtype: torch.dtype | None = None) -> None:
    (heads, found), (expected_heads, expected) = gradients(one, dtype), gradients(other, dtype)
    assert len(heads) == len(expected_heads) and all(map(torch.equal, heads, expected_heads))
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert found.keys() == expected.keys() and any(value.abs().sum() > 0 for value in found.values())


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_gradients_are_the_same_bits(settings: dict[str, Any]) -> None:
    kept, recomputed = pair(**settings)
    assert_equal(recomputed, kept)


@pytest.mark.parametrize("fusion", ["grid", "unet"])
@pytest.mark.parametrize("pays", [True, False])
def test_under_autocast_too(pays: bool, fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2enet.network.e2enet.half_precision_pays_on_cpu", lambda: pays)
    kept, recomputed = pair(fusion=fusion)
    assert_equal(recomputed, kept, torch.bfloat16)
    heads, _ = gradients(recomputed, torch.bfloat16)
    assert heads[0].dtype == (torch.bfloat16 if pays else torch.float32)


def test_in_float64_and_for_the_gradient_of_the_image() -> None:
    kept, recomputed = (network.double() for network in pair())
    images = [patch().double().requires_grad_() for _ in range(2)]
    for network, image in zip((kept, recomputed), images, strict=True):
        sum(head.square().mean() for head in network(image)).backward()
    assert images[0].grad is not None and torch.equal(images[0].grad, images[1].grad)


def saved_bytes(network: nn.Module) -> int:
    """Return the bytes that autograd saves in a forward pass, without parameters; each storage counts once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(patch())
    del output
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in parameters)


@pytest.mark.parametrize("fusion", ["grid", "unet"])
def test_less_than_half_is_kept(fusion: str) -> None:
    kept, recomputed = pair(fusion=fusion)
    assert 0 < saved_bytes(recomputed) < saved_bytes(kept) / 2


def test_every_part_is_recomputed_and_only_where_gradients_are_wanted(recomputed_parts: list[Any]) -> None:
    kept, recomputed = pair()
    kept(patch())
    assert recomputed_parts == []
    recomputed(patch())
    # Four stages; six nodes, three of them with a second block.
    assert len(recomputed_parts) == 4 + 6 + 3
    with torch.inference_mode():
        recomputed(patch())
    assert len(recomputed_parts) == 13


def test_one_more_forward_pass_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, recomputed = pair()
    calls = {"kept": 0, "recomputed": 0}
    for name, network in (("kept", kept), ("recomputed", recomputed)):
        conv = network.encoder[1][0].conv  # type: ignore[index]
        conv.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
        gradients(network)
    assert calls == {"kept": 1, "recomputed": 2}


def test_wrapped_for_several_processes(tmp_path: Path) -> None:
    """DDP waits for the gradient of every parameter: if one is missing, the next step fails."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for settings in ({}, {"deep_supervision": False}, {"fusion": "unet"}):
            kept, recomputed = pair(**settings)  # type: ignore[arg-type]
            wrapped = DistributedDataParallel(recomputed)
            for _ in range(3):
                _, found = gradients(wrapped)
                _, expected = gradients(kept)
                assert [name for name in expected if not torch.equal(found[f"module.{name}"], expected[name])] == []
                for network in (kept, recomputed):
                    torch.optim.SGD(network.parameters(), lr=0.1).step()
    finally:
        distributed.destroy_process_group()


def test_it_is_no_part_of_the_weights() -> None:
    kept, recomputed = pair()
    assert recomputed.state_dict().keys() == kept.state_dict().keys()
    kept.load_state_dict(recomputed.state_dict())
    assert kept.run_part is run_once and copy.deepcopy(recomputed).run_part is recompute.recompute


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match=r"training\.checkpoint_activations=true: DynUNet keeps its activations"):
        checkpoint_activations(DynUNet(1, 2, STRIDES, base_features=4))
