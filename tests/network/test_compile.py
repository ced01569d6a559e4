"""torch.compile: one graph for a training step; mask changes, zeroed weights and further steps keep it."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.compile_fx import compile_fx

from e2enet.network import E2ENet
from e2enet.network.dead_kernels import hold_masks
from e2enet.network.dsff import apply_masks, init_masks, update_masks
from e2enet.network.half_precision import half_precision_pays_on_cpu
from e2enet.network.recompute import checkpoint_activations

STRIDES = [(1, 2, 2), (2, 2, 2)]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"shift_size": 5},
    {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3)},
    {"deep_supervision": False},
    {"fusion": "unet"},
]


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    dynamo.reset()
    yield
    dynamo.reset()


def make_network(**settings: Any) -> E2ENet:
    torch.manual_seed(0)
    return E2ENet(1, 2, STRIDES, base_features=3, max_features=6, **settings)


def compiled(network: nn.Module, backend: str) -> CompileCounterWithBackend:
    """Compile a network in place, as training does. Anything but a single graph is an error."""
    counter = CompileCounterWithBackend(backend)
    network.compile(backend=counter, fullgraph=True)
    return counter


def backward(network: nn.Module, *, bfloat16: bool = False, seed: int = 1) -> list[Tensor]:
    """Return the logits of every head after a backward pass from all of them."""
    image = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = network(image)
    heads = [output] if isinstance(output, Tensor) else output
    sum(head.float().square().mean() for head in heads).backward()  # type: ignore[union-attr]
    return heads


def assert_close(network: nn.Module, plain: nn.Module, heads: list[Tensor], expected: list[Tensor]) -> None:
    for head, other in zip(heads, expected, strict=True):
        torch.testing.assert_close(head, other, rtol=1e-4, atol=1e-4)
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    "settings", [VARIANTS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in VARIANTS[1:])], ids=str
)
def test_one_graph_holds_the_network(settings: dict[str, Any], recomputed: bool) -> None:
    network = make_network(**settings)
    plain = copy.deepcopy(network)
    if recomputed:
        checkpoint_activations(network)
    counter = compiled(network, "aot_eager" if settings == {} else "eager")
    assert_close(network, plain, backward(network), backward(plain))
    assert counter.frame_count == 1


@pytest.mark.parametrize("recomputed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "recomputed"])
@pytest.mark.parametrize("pays", [None, False, True], ids=["this machine", "in float32", "in bfloat16"])
def test_one_graph_under_autocast(pays: bool | None, recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pays is None:
        pays = half_precision_pays_on_cpu()
    else:
        monkeypatch.setattr("e2enet.network.half_precision.PAYS", pays)
    network = make_network()
    if recomputed:
        checkpoint_activations(network)
    counter = compiled(network, "eager")
    heads = backward(network, bfloat16=True)
    assert heads[0].dtype == (torch.bfloat16 if pays else torch.float32)
    backward(network, bfloat16=True, seed=2)
    assert counter.frame_count == 1
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("backend", "recomputed"),
    [
        ("eager", True),
        ("aot_eager", False),
        pytest.param("eager", False, marks=pytest.mark.slow),
        pytest.param("aot_eager", True, marks=pytest.mark.slow),
    ],
)
def test_masks_zeroed_weights_and_steps_need_no_other_graph(backend: str, recomputed: bool) -> None:
    network = make_network()
    generator = torch.Generator().manual_seed(1)
    init_masks(network, density=0.5, generator=generator)
    plain = copy.deepcopy(network)
    if recomputed:
        checkpoint_activations(network)
    counter = compiled(network, backend)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    # From the second step on, recompilation is an error.
    backward(network)
    with dynamo.config.patch(error_on_recompile=True):
        for step in range(2, 6):
            optimizer.step()
            update_masks(network, 0.5, generator=generator)
            hold_masks(network, optimizer)
            optimizer.zero_grad()
            heads = backward(network, seed=step)
        apply_masks(network)
    assert counter.frame_count == 1
    # The graph reads the current weights, not those at compilation.
    plain.load_state_dict(network.state_dict())
    assert_close(network, plain, heads, backward(plain, seed=5))


def test_each_mode_is_compiled_once() -> None:
    network = make_network()
    counter = compiled(network, "eager")
    image = torch.randn(2, 1, 4, 8, 8)
    counts = []
    for _ in range(2):
        network.train()
        backward(network)
        network.eval()
        with torch.inference_mode():
            network(image)
        counts.append(counter.frame_count)
    assert counts == [2, 2]


def test_the_count_counts() -> None:
    network = make_network()
    counter = compiled(network, "eager")
    for size in (8, 16):
        network(torch.randn(1, 1, 4, size, 8))
    assert counter.frame_count == 2


def test_inductor_parts_what_is_recomputed() -> None:
    """Run inductor's graph passes without its C++ compiler, which takes minutes."""

    def keep(graph: Any, inputs: Any, **_: Any) -> Any:
        return make_boxed_func(graph)

    torch.manual_seed(0)
    network = E2ENet(1, 2, STRIDES[:1], base_features=3)
    plain = copy.deepcopy(network)
    checkpoint_activations(network)
    network.compile(backend=partial(compile_fx, inner_compile=keep), fullgraph=True)
    assert_close(network, plain, backward(network), backward(plain))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_inductor_gives_the_same(recomputed: bool) -> None:
    network = make_network()
    init_masks(network, density=0.5, generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(network)
    if recomputed:
        checkpoint_activations(network)
    counter = compiled(network, "inductor")
    assert_close(network, plain, backward(network), backward(plain))
    with dynamo.config.patch(error_on_recompile=True):
        update_masks(network, 0.5)
        backward(network, seed=2)
    assert counter.frame_count == 1
