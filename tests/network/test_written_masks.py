"""A mask written in place acts at once, in everything that runs or counts a network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from e2enet.network.cost import count_cost
from e2enet.network.dsff import apply_masks, expand_mask, fusion_layers, init_masks, set_group_size
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine import compact
from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.engine.training import TrainingEngine
from e2enet.network.fused.grouped import nan_where_changed
from e2enet.network.fused.network import FusedNetwork
from tests.network.engine.test_compact import SIZE, make_model
from tests.network.engine.test_training import gradients, sample


def write_masks(model: E2ENet, seed: int = 5) -> None:
    """Set every mask to a random half of its kernels. Weights are shifted by 0.1, so that inactive ones are not 0."""
    draw = torch.Generator().manual_seed(seed)
    for layer in fusion_layers(model).values():
        layer.weight.data += 0.1
        layer.kernel_mask.copy_(torch.rand(layer.kernel_mask.shape, generator=draw) < 0.5)


def with_zeros(model: E2ENet) -> E2ENet:
    """Return a copy whose inactive weights are zero, as the masks demand."""
    zeroed = copy.deepcopy(model)
    apply_masks(zeroed)
    return zeroed


@pytest.fixture
def written() -> E2ENet:
    model = make_model(0.3)
    write_masks(model)
    return model


def test_inference_obeys_it(written: E2ENet) -> None:
    x = sample()
    with torch.no_grad():
        expected = with_zeros(written)(x)
        torch.testing.assert_close(written(x), expected, rtol=0, atol=0)
        for network in (CompactNetwork(written, choose=False), compact(written)):
            torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-4)
        write_masks(written, 6)
        again = written(x)
        torch.testing.assert_close(again, with_zeros(written)(x), rtol=0, atol=0)
    assert float((again - expected).abs().max()) > 0.1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_a_kernel_holds_that_is_off_is_never_read(written: E2ENet, value: float) -> None:
    zeroed, x = with_zeros(written), sample(1)
    for layer in fusion_layers(written).values():
        layer.weight.data.masked_fill_(~expand_mask(layer.kernel_mask, layer.weight), value)
    expected = zeroed(x).detach()
    torch.testing.assert_close(written(x).detach(), expected, rtol=0, atol=0)
    torch.testing.assert_close(compact(written, choose=False)(x), expected, rtol=0, atol=1e-4)
    grads = [gradients(network, network, x)[1] for network in (written, zeroed)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)
    # The same holds under torch's tools.
    torch.testing.assert_close(make_fx(written)(x)(x).detach(), expected, rtol=0, atol=0)
    own = torch.func.grad(lambda x: written(x).square().mean())(x)
    torch.testing.assert_close(own, torch.func.grad(lambda x: zeroed(x).square().mean())(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_mask_of_numbers_is_refused(written: E2ENet, dtype: torch.dtype) -> None:
    for name in ("up", "blocks.0.conv"):
        layer = written.decoder.columns[0][0].get_submodule(name)  # type: ignore[union-attr, index]
        mask = layer.kernel_mask
        for other in (mask.to(dtype), mask[:, :1]):
            layer.kernel_mask = other
            with pytest.raises(ValueError, match=r"kernel_mask is torch\.\w+ of shape .*, expected torch\.bool of \("):
                written(sample(1))
        layer.kernel_mask = mask


@pytest.mark.parametrize("name", ["encoder.0.1.conv", "decoder.columns.0.0.blocks.0.conv", "decoder.columns.0.0.up"])
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_parametrized_weight_obeys_it(written: E2ENet, name: str, normed: Any) -> None:
    expected = written(sample(1))
    normed(written.get_submodule(name))
    torch.testing.assert_close(written(sample(1)), expected, rtol=0, atol=1e-5)
    assert compact(written) is written


def test_training_obeys_it(written: E2ENet) -> None:
    written.train()
    engine: Any = TrainingEngine(written)
    for seed in (5, 6):  # the second time masks change between steps
        write_masks(written, seed)
        zeroed = with_zeros(written)
        expected = gradients(zeroed, zeroed, sample())
        for run, tolerance in ((written, 0.0), (engine, 2e-3)):
            found = gradients(run, written, sample())
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_what_groups_run_obeys_it() -> None:
    model = make_model(1.0, base=16).train()
    set_group_size(model, 8)
    init_masks(model, 0.5, generator=torch.Generator().manual_seed(1))
    for layer in fusion_layers(model).values():
        layer.weight.data += 0.1
    for layer in list(fusion_layers(model).values())[::2]:
        layer.kernel_mask[0] = ~layer.kernel_mask[0]  # no shared inputs any more: such a layer runs ungrouped
    zeroed = with_zeros(model)
    expected = gradients(zeroed, zeroed, sample())[0]
    torch.testing.assert_close(
        gradients(FusedNetwork(model, groups=True), model, sample())[0], expected, rtol=0, atol=1e-4
    )


def test_what_groups_run_obeys_what_is_written_through_data() -> None:
    model = make_model(1.0, base=16)
    set_group_size(model, 8)
    init_masks(model, 0.5, generator=torch.Generator().manual_seed(1))
    other, run, x = copy.deepcopy(model), FusedNetwork(model, groups=True), sample(1)
    init_masks(other, 0.5, generator=torch.Generator().manual_seed(2))
    for layer in fusion_layers(model).values():
        layer.weight.data += 0.1
    run(x)
    for layer, drawn in zip(fusion_layers(model).values(), fusion_layers(other).values(), strict=True):
        layer.kernel_mask.data.copy_(drawn.kernel_mask)
    torch.testing.assert_close(run(x), with_zeros(model)(x), rtol=0, atol=1e-4)


def test_a_gpu_gives_nan_for_what_is_written_through_data() -> None:
    weight, mask = torch.ones(2, 3), torch.tensor([True, False])
    assert torch.equal(nan_where_changed(weight, mask, mask.clone()), weight)
    assert nan_where_changed(weight, mask, ~mask).isnan().all()


def test_cost_counts_it(written: E2ENet) -> None:
    assert count_cost(written, SIZE) == count_cost(with_zeros(written), SIZE)
    before = count_cost(written, SIZE)
    conv = written.decoder.columns[0][0].blocks[0].conv  # type: ignore[union-attr, index]
    off = int(conv.kernel_mask.sum())
    conv.kernel_mask.fill_(False)
    after = count_cost(written, SIZE)
    assert before.params - after.params == off * 9 and before.flops - after.flops == 2 * off * 9 * 8 * 16 * 20


def test_gradients_of_kernels_that_are_off_still_tell_where_to_grow(written: E2ENet) -> None:
    x = sample(1)
    zeroed = with_zeros(written).train()
    for layer in fusion_layers(zeroed).values():
        del layer.kernel_mask  # a plain convolution with the same weights
    grads: list[dict[str, Tensor]] = []
    for network in (written.train(), zeroed):
        sum(head.sum() for head in network(x)).backward()
        grads.append({name: parameter.grad for name, parameter in network.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    layer = written.decoder.columns[0][0].blocks[0].conv  # type: ignore[union-attr, index]
    assert (layer.weight.grad * ~expand_mask(layer.kernel_mask, layer.weight)).any()
