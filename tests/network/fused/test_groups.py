"""Layers that gather the inputs of each group of output channels give the outputs of the masked network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.network.dsff import expand_mask, fusion_layers, init_masks, set_group_size, update_masks
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.select import compact, select_engine, select_training, select_validation, unsupported
from e2enet.network.fused import network as fused_network
from e2enet.network.fused.grouped import GroupedBlock, grouped_layers
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.recompute import checkpoint_activations
from tests.network.engine.test_compact import make_model
from tests.network.engine.test_training import gradients, sample

GPU, META = torch.device("cuda"), torch.device("meta")


def grouped_model(group_size: int = 8, density: float = 0.25, *, base: int = 16, **settings: Any) -> E2ENet:
    model = make_model(1.0, base=base, **settings).train()
    set_group_size(model, group_size)
    init_masks(model, density, generator=torch.Generator().manual_seed(1))
    return model


def assert_same(model: E2ENet, x: Tensor, run: FusedNetwork | None = None) -> None:
    logits, found = gradients(run or FusedNetwork(model, groups=True), model, x)
    for layer in grouped_layers(model):
        assert not (layer.weight.grad * ~expand_mask(layer.kernel_mask, layer.weight)).any()
    exact = copy.deepcopy(model).double()
    expected_logits, expected = gradients(exact, exact, x.double())
    torch.testing.assert_close(logits, [head.float() for head in expected_logits], rtol=0, atol=1e-4)
    for name, grad in expected.items():
        own = found[name]
        assert grad is not None and own is not None
        assert float((own - grad).abs().max()) <= 1e-4 * (float(grad.abs().max()) + 1e-3), name


@pytest.mark.parametrize("group_size", [8, 16, 32])  # 32: a layer of 16 channels is one group
@pytest.mark.parametrize("density", [0.1, 0.25, 1.0])
def test_gradients_are_the_masked_networks(group_size: int, density: float) -> None:
    assert_same(grouped_model(group_size, density), sample())


def test_a_last_group_may_be_smaller() -> None:
    model = grouped_model(16, base=20)
    assert any(layer.out_channels % 16 and layer.out_channels > 16 for layer in grouped_layers(model))
    assert_same(model, sample())


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 3), (3, 3, 1)])
def test_other_kernels_run_the_same_way(kernel: tuple[int, int, int]) -> None:
    assert_same(grouped_model(kernel_size=kernel), sample())


def test_every_layer_convolves_active_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grouped_model(16, 0.25)
    multiplied: dict[int, int] = {}
    weight_of = GroupedBlock._weight

    def watched(self: GroupedBlock, run: Any) -> Tensor:
        weight = weight_of(self, run)
        multiplied[id(self.conv)] = weight.shape[0] * weight.shape[1]
        return weight

    monkeypatch.setattr(GroupedBlock, "_weight", watched)
    FusedNetwork(model, groups=True)(sample())
    layers = grouped_layers(model)
    assert len(layers) == len(multiplied) > 2
    for layer in layers:
        outputs, channels = layer.kernel_mask.shape
        active = int(layer.kernel_mask.sum())
        assert active < outputs * channels / 2
        assert active <= multiplied[id(layer)] < active + 8 * outputs  # each group is padded to a multiple of 8


def test_masks_are_read_anew_when_they_change() -> None:
    model = grouped_model()
    run = FusedNetwork(model, groups=True)
    for _ in range(2):
        assert_same(model, sample(), run)
        before = {name: layer.kernel_mask.clone() for name, layer in fusion_layers(model).items()}
        update_masks(model, 0.5, generator=torch.Generator().manual_seed(4))
        for layer in fusion_layers(model).values():
            torch.nn.init.normal_(layer.weight)
            layer.weight.data *= expand_mask(layer.kernel_mask, layer.weight)
        assert any(not torch.equal(layer.kernel_mask, before[name]) for name, layer in fusion_layers(model).items())
    assert_same(model, sample(), run)
    versions = [layer.kernel_mask._version for layer in grouped_layers(model)]
    for layer, version in zip(grouped_layers(model), versions, strict=True):
        other = layer.kernel_mask.roll(1, dims=1)
        for _ in range(version - other._version):
            other.copy_(other.clone())
        layer.kernel_mask = other  # another tensor with the same version number
        layer.weight.data.normal_().mul_(expand_mask(other, layer.weight))
    assert [layer.kernel_mask._version for layer in grouped_layers(model)] == versions
    assert_same(model, sample(), run)


def test_inference_mode_leaves_training_possible() -> None:
    model = grouped_model()
    run = FusedNetwork(model, groups=True)
    with torch.inference_mode():
        run(sample())
        moved = copy.deepcopy(model)  # inference tensors have no version number
        torch.testing.assert_close(FusedNetwork(moved, groups=True)(sample()), model(sample()), rtol=0, atol=1e-4)
    assert_same(model, sample(), run)


def test_layers_whose_mask_is_no_table_run_as_they_are() -> None:
    model = grouped_model()
    written_by_hand: Any = grouped_layers(model)[0]
    written_by_hand.kernel_mask[0, 0] ^= True
    written_by_hand.weight.data *= expand_mask(written_by_hand.kernel_mask, written_by_hand.weight)
    x = sample()
    empty: Any = grouped_layers(model)[1]
    empty.kernel_mask.zero_()
    empty.weight.data.zero_()
    with torch.no_grad():
        found, expected = FusedNetwork(model, groups=True)(x), model(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_autocast_reaches_it() -> None:
    model = grouped_model().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = FusedNetwork(model, groups=True)(sample())
    expected = model(sample()).detach()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_what_multiplies_groups_is_chosen_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, kernels = grouped_model(), make_model(0.25)
    monkeypatch.setattr(fused_network, "has_triton", lambda: False)
    assert unsupported(groups, GPU) == "triton is not installed, in which its kernels for CUDA are written"
    monkeypatch.setattr(fused_network, "has_triton", lambda: True)
    assert unsupported(groups, GPU) is None
    reason = "on cuda, only groups of kernels are multiplied alone"
    assert (unsupported(kernels, GPU) or "").startswith(reason)
    alone = copy.deepcopy(kernels).to("meta")
    assert select_engine(alone, "auto", device=META, patch_size=(8, 16, 20)) is alone  # nothing can be verified there
    elsewhere = copy.deepcopy(groups).to("meta")
    assert isinstance(select_engine(elsewhere, "sparse", device=META, patch_size=(8, 16, 20)), FusedNetwork)
    for mode in (True, False):
        multiplied = compact(elsewhere.train(mode))
        assert isinstance(multiplied, FusedNetwork) and multiplied.groups and multiplied.training is mode
    elsewhere.train()
    for select in (select_training, select_validation):
        assert isinstance(select(elsewhere, "sparse", amp_dtype=None), FusedNetwork)
        assert select(elsewhere, "auto", amp_dtype=None) is elsewhere  # not timed on this device
        with pytest.raises(InputError, match=r"training\.engine=sparse: on meta, only groups of kernels"):
            select(copy.deepcopy(kernels).to("meta"), "sparse", amp_dtype=None)
    checkpoint_activations(elsewhere)
    with pytest.raises(InputError, match="recomputes torch's own pass"):
        select_training(elsewhere, "sparse", amp_dtype=None)
