"""An operation that no backend knows yet: each refuses it by its name before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.export.plain_network import plain_network
from e2enet.network import E2ENet
from e2enet.network.blocks import BlockStack, ConvBlock
from e2enet.network.connections import connections
from e2enet.network.cost import count_cost
from e2enet.network.engine import compact, known
from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.engine.training import TrainingEngine
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.program import KINDS, SIZES
from e2enet.network.tracing import CHILDREN, read_program

SIZE = (4, 8, 8)
BACKENDS: dict[str, Callable[[E2ENet], Any]] = {
    "the engine in prediction": lambda model: CompactNetwork(model.eval()),
    "the engine in training": lambda model: TrainingEngine(model.train()),
    "the fused pass": FusedNetwork,
    "the cost counter": lambda model: count_cost(model, SIZE),
    "the report on connections": connections,
    "the export": plain_network,
}


class Gain(nn.Module):
    """Multiplies each channel of (B, C, D, H, W) by a number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.view(-1, 1, 1, 1)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> E2ENet:
    """A network whose first stage ends with a new operation, which the table of operations and `known` have."""
    monkeypatch.setitem(KINDS, Gain, "gain")
    monkeypatch.setitem(CHILDREN, Gain, ())
    monkeypatch.setitem(CHILDREN, BlockStack, (ConvBlock, Gain))
    monkeypatch.setitem(known.PROBLEMS, Gain, lambda gain: iter(()))
    model = E2ENet(2, 3, [(1, 2, 2), (2, 2, 2)], base_features=4)
    model.encoder[0].append(Gain(4))  # type: ignore[union-attr]
    return model


def test_the_program_has_it(network: E2ENet) -> None:
    operation = read_program(network, training=False).operations[2]
    assert (operation.name, operation.kind, operation.inputs, operation.output) == ("encoder.0.2", "gain", (2,), 3)
    with torch.no_grad():
        assert torch.isfinite(network.eval()(torch.ones(1, 2, *SIZE))).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_refuses_it_by_name(backend: str, network: E2ENet) -> None:
    with pytest.raises(
        InputError, match=rf"encoder\.0\.2: {backend} has no operation 'gain', only block, .*; expected "
    ):
        BACKENDS[backend](network)


def test_its_size_is_asked_for_by_name(network: E2ENet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(count_cost.__globals__["COUNTED"], "gain", lambda *_: None)
    with pytest.raises(InputError, match=r"encoder\.0\.2: the program has no operation 'gain', .* an entry in SIZES"):
        count_cost(network, SIZE)
    monkeypatch.setitem(SIZES, "gain", lambda gain, size: size)
    without = E2ENet(2, 3, [(1, 2, 2), (2, 2, 2)], base_features=4)
    found, expected = count_cost(network, SIZE), count_cost(without, SIZE)
    assert (found.flops, found.params) == (expected.flops, expected.params + 4)


def test_an_unknown_module_is_no_operation() -> None:
    model = E2ENet(2, 3, [(1, 2, 2), (2, 2, 2)], base_features=4)
    model.encoder[0].append(Gain(4))  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"its encoder\.0 holds a module Gain, 2"):
        CompactNetwork(model)
    assert compact(model) is model
    # What counts any network still counts this one.
    assert count_cost(model, SIZE).params == sum(parameter.numel() for parameter in model.parameters())
    assert {one.level for one in connections(model)} == {None}
