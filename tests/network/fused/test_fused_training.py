"""What a fused pass holds, and how its logits and gradients behave in a training loop."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch

from e2enet.network.blocks import ConvBlock
from e2enet.network.fused import network, operations
from e2enet.network.fused.grouped import grouped_layers
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.seen_mask import SeenMask
from tests.network.fused.test_fused_network import assert_same, image, in_groups, make, name_of, step


def recorded(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """Return lists that get weak references to the values of each forward pass, and to each pass."""
    values, passes, forward = [], [], network.run_forward

    def run(work: Any, run: Any, x: Any) -> Any:
        found = forward(work, run, x)
        values.extend(weakref.ref(one.values) for number, one in found.items() if number != 0)
        passes.append(weakref.ref(run))
        return found

    monkeypatch.setattr(network, "run_forward", run)
    return values, passes


def alive(references: list[Any]) -> int:
    return sum(reference() is not None for reference in references)


def test_nothing_is_held_when_logits_are_dropped_or_have_gone_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    fused, x, (values, passes) = FusedNetwork(model), image(model), recorded(monkeypatch)
    logits = fused(x)
    assert alive(values) == len(values) > 20 and alive(passes) == 1
    del logits  # a loss that ran out of memory, or a batch left out
    assert alive(values) == alive(passes) == 0
    loss = sum(one.square().mean() for one in fused(x))
    loss.backward()
    assert alive(values) == alive(passes) == 0 and loss > 0


def test_logits_may_be_changed_in_place() -> None:
    model = make()

    def halved(run: Any) -> Any:
        return lambda x: [head.mul_(0.5) for head in run(x)]

    expected, wanted = step(model, halved(model), image(model))
    found, grads = step(model, halved(FusedNetwork(model)), image(model))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-8)


def test_frozen_parts_get_no_gradient_and_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    x, (values, _) = image(model), recorded(monkeypatch)
    fused = FusedNetwork(model)
    fused(x)
    everything = len(values)
    for part in (model.encoder, model.heads[1:], model.decoder):  # type: ignore[index]
        part.requires_grad_(False)
        gathered: list[Any] = []

        def gather(*given: Any, own: Any = operations.GATHER_GRADIENT, calls: list[Any] = gathered) -> Any:
            calls.append(given)
            return own(*given)

        with monkeypatch.context() as patch:
            patch.setattr(operations, "GATHER_GRADIENT", gather)
            assert_same(model, x, heads=1 if part is model.decoder else None)
        of_encoder = 8
        assert len(gathered) <= len([m for m in model.modules() if isinstance(m, ConvBlock)]) - of_encoder
        if part is model.encoder:
            assert gathered
    assert gathered == []  # the first head alone is trained
    values.clear()
    found = fused(x)
    assert alive(values) < everything // 2
    model.requires_grad_(False)
    assert [one.requires_grad for one in found] == [True, False]
    assert not fused(x)[0].requires_grad


def test_a_network_copied_with_its_fused_pass() -> None:
    model = make()
    fused, x = FusedNetwork(model), image(model)
    expected = fused(x)[0]
    for own in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        model.heads[0].weight.data.zero_()  # type: ignore[union-attr,operator]
        assert torch.equal(own(x)[0], expected) and own.network is not model
        assert_same(own.network, x, run=own)


def test_a_mask_that_changes_unseen_makes_its_forward_pass_nan_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    in_groups(model)
    x, fused = image(model), FusedNetwork(model, groups=True)
    _, wanted = step(model, fused, x)
    monkeypatch.setattr(SeenMask, "is_current", lambda *_: True)  # on a GPU it compares versions, not values
    model.zero_grad()
    logits = fused(x)
    layer = grouped_layers(model)[0]
    layer.kernel_mask.data.copy_(~layer.kernel_mask)
    draw = torch.Generator().manual_seed(2)
    torch.autograd.backward(logits, [torch.randn(one.shape, dtype=one.dtype, generator=draw) for one in logits])
    assert torch.equal(layer.weight.grad, wanted[name_of(model, layer)])  # type: ignore[arg-type]
    assert fused(x)[0].isnan().all()
