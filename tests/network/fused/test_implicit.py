"""Convolutions that prepare what they read: the network's logits and gradients, and which operations run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from e2enet.network.fused import operations, operations_implicit
from e2enet.network.fused.network import FusedNetwork
from tests.network.fused.test_fused_network import SIZE, assert_same, image, make, step


def count_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return a dictionary that gets how often each operation was called."""
    calls: dict[str, int] = {}
    for module in (operations, operations_implicit):
        for name, operation in vars(module).items():
            if name.isupper() and hasattr(operation, "default"):

                def counted(*given: Any, name: str = name, own: Any = operation) -> Any:
                    calls[name] = calls.get(name, 0) + 1
                    return own(*given)

                monkeypatch.setattr(module, name, counted)
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shift_size": 5},
        {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3), "shift_size": 1},
        {"fusion": "unet", "shift_input": True},
        {"strides": [(3, 1, 2), (1, 4, 1)]},
    ],
    ids=str,
)
def test_logits_and_gradients_are_the_networks(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(**arguments)
    calls = count_calls(monkeypatch)
    assert_same(
        model, image(model, size=(6, 16, 8) if "strides" in arguments else SIZE), run=FusedNetwork(model, implicit=True)
    )
    assert calls["CONVOLVE"] > 2 and calls["PRODUCT"] > 3
    assert calls["CORRELATE"] == calls["CONVOLVE"] + calls["PRODUCT"]


def test_nothing_writes_the_input_of_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    calls = count_calls(monkeypatch)
    step(model, FusedNetwork(model, implicit=True), image(model))
    assert "PREPARE" not in calls and "STATISTICS" not in calls
    calls.clear()
    volumes = make(kernel_size=(3, 3, 3))
    with torch.no_grad():
        FusedNetwork(volumes, implicit=True)(image(volumes))
    assert calls["PREPARE"] == calls["STATISTICS"] > 3 and "CONVOLVE" not in calls and calls["PRODUCT"] > 3
