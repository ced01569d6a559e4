"""The loops as torch operations: they pass torch's own check, and their gradients are right or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from e2enet.network.layers import line_products
from e2enet.network.norm import InstanceNormAct
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.shift import shift_concat

OPERATIONS = torch.ops.e2enet
LOOPS = {"line_products", "max_pool", "norm_act", "shift_concat"}


def draw(*size: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def last(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw a channels-last tensor."""
    return draw(*size, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)


NORM = draw(3), draw(3)
LARGEST = torch.randint(0, 8, (2, 3, 2, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SAMPLES: dict[str, list[tuple[Any, ...]]] = {
    "norm_act": [
        (last(2, 3, 4, 5, 6), *NORM, 1e-5, 0.01),
        (draw(1, 3, 1, 2, 1, dtype=torch.float32), *(value.float() for value in NORM), 1e-5, 0.01),
    ],
    "norm_act_backward": [
        (draw(2, 3, 2, 3, 4), last(2, 3, 2, 3, 4), *NORM, draw(2, 3), draw(2, 3).square() + 1, 0.01),
    ],
    "max_pool": [(last(2, 3, 4, 4, 6), [2, 2, 2]), (draw(1, 1, 2, 4, 4, dtype=torch.float32), [1, 2, 2])],
    "max_pool_backward": [(draw(2, 3, 2, 2, 3), LARGEST, [2, 2, 2])],
    "shift_concat": [
        ([last(2, 3, 4, 4, 6), draw(2, 2, 4, 4, 6)], 3),
        ([draw(2, 2, 2, 2, 2, 2, 3, 2), last(2, 3, 4, 4, 6)], 5),
    ],
    "shift_concat_backward": [
        (last(2, 5, 4, 4, 6), 1, 3, [], 3),
        (last(2, 5, 4, 4, 6), 1, 3, [1, 1, 1], 3),
        (draw(2, 5, 4, 4, 6), 2, 3, [2, 2, 2], 3),
    ],
    "line_products": [(draw(7, 3), draw(4, 3, 5))],
    "line_products_backward": [(draw(4, 7, 5), draw(7, 3), draw(4, 3, 5))],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_torch_finds_nothing_wrong_with_an_operation(name: str) -> None:
    wanted = name in LOOPS
    for sample in SAMPLES[name]:
        given = [
            [part.clone().requires_grad_(wanted) for part in value]
            if name == "shift_concat" and isinstance(value, list)
            else value.clone().requires_grad_(wanted)
            if isinstance(value, Tensor)
            else value
            for value in sample
        ]
        torch.library.opcheck(getattr(OPERATIONS, name).default, tuple(given))


def test_every_operation_is_tried() -> None:
    names = [str(one) for one in torch._C._dispatch_get_all_op_names()]
    registered = {name.removeprefix("e2enet::") for name in names if name.startswith("e2enet::")}
    # Those of e2enet.network.fused have tests of their own, which may have imported them into this process.
    assert {name for name in registered if not name.startswith("fused_")} == set(SAMPLES)


LAYERS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "norm": (
        lambda x, weight, bias: functional_call(InstanceNormAct(2), {"weight": weight, "bias": bias}, x),
        [last(2, 2, 2, 2, 3), draw(2), draw(2, seed=3)],
    ),
    "pooling": (lambda x: StrideMaxPool3d((1, 2, 2))(x), [last(1, 2, 2, 4, 4)]),
    "shift": (lambda *sources: shift_concat(sources, 3), [last(1, 2, 4, 2, 2), draw(1, 2, 2, 2, 1, 2, 2, 1)]),
    "products": (line_products, [draw(4, 2), draw(3, 2, 2)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_gradients(name: str) -> None:
    layer, inputs = LAYERS[name]
    given = [value.clone().requires_grad_() for value in inputs]
    # Inputs must not be leaves: an input that depends on another must not be counted twice.
    assert torch.autograd.gradcheck(lambda *values: layer(*(value.sin() for value in values)), given)
    assert torch.autograd.gradgradcheck(lambda *values: layer(*(value.sin() for value in values)), given)


def test_an_input_that_depends_on_another_counts_once() -> None:
    norm = LAYERS["norm"][0]
    x = last(1, 2, 2, 2, 3).requires_grad_()

    def together(x: Tensor) -> Tensor:
        return norm(x, x.mean((0, 2, 3, 4)), x.square().mean((0, 2, 3, 4)))

    assert torch.autograd.gradgradcheck(together, [x])


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_an_operation_itself_is_differentiated_by_autograd_or_refused(name: str) -> None:
    sample = SAMPLES[name][0]

    def run(x: Tensor) -> Tensor:
        given = [x, *sample[0][1:]] if isinstance(sample[0], list) else x
        found = getattr(OPERATIONS, name)(given, *sample[1:])
        return (found if isinstance(found, Tensor) else found[0]).sum()

    x = sample[0][0] if isinstance(sample[0], list) else sample[0]
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(run)(x)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|functorch"):
        torch.func.jvp(run, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        run(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - LOOPS))
def test_a_backward_operation_has_no_gradient(name: str) -> None:
    first, *others = SAMPLES[name][0]
    found = getattr(OPERATIONS, name)(first.clone().requires_grad_(), *others)
    with pytest.raises(NotImplementedError, match=rf"e2enet\.{name}(\.default)? has no gradient"):
        (found if isinstance(found, Tensor) else found[0]).sum().backward()
