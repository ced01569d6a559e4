"""torch's tools see what the network computes: its loops are operations of torch, right or refused under each tool."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from e2enet.network import E2ENet
from e2enet.network.cost import count_cost
from e2enet.network.dsff import init_masks
from e2enet.network.layers import line_products
from e2enet.network.norm import InstanceNormAct
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.shift import shift_concat

OPERATIONS = torch.ops.e2enet
LOOPS = {"line_products", "max_pool", "norm_act", "shift_concat"}
SIZE = (2, 1, 4, 8, 8)


def make_network(dtype: torch.dtype = torch.float32) -> E2ENet:
    torch.manual_seed(0)
    network = E2ENet(1, 2, [(1, 2, 2), (2, 2, 2)], base_features=3, max_features=6).eval().to(dtype)
    init_masks(network, 0.6, generator=torch.Generator().manual_seed(1))
    return network


def draw(*size: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def last(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A channels-last draw."""
    return draw(*size, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)


def loss(network: E2ENet, x: Tensor) -> Tensor:
    return network(x).square().mean()


def gradient(network: E2ENet, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(network, x), x)[0]


def of_parameters(network: E2ENet, x: Tensor) -> dict[str, Tensor]:
    """The loss's gradients; parameters that it does not reach are left out."""
    network.zero_grad()
    loss(network, x).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------------------------------------- operations

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
    registered = {str(one).split("::")[1] for one in torch._C._dispatch_get_all_op_names() if "e2enet::" in str(one)}
    assert registered == set(SAMPLES)


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
    # Nothing of it may be a leaf: an input that depends on another must not be counted twice.
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


# ---------------------------------------------------------------------------------------------- the network


def loops_of(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.target).split(".")[1] for node in graph.graph.nodes if str(node.target).startswith("e2enet.")}


def test_make_fx_records_the_loops() -> None:
    network, other = make_network(), draw(*SIZE, dtype=torch.float32, seed=3)
    graph = make_fx(network)(draw(*SIZE, dtype=torch.float32))
    assert loops_of(graph) == LOOPS
    assert torch.equal(graph(other), network(other))


def test_make_fx_records_the_backward_pass() -> None:
    network, other = make_network(), draw(*SIZE, dtype=torch.float32, seed=3)
    graph = make_fx(lambda x: gradient(network, x))(draw(*SIZE, dtype=torch.float32))
    assert loops_of(graph) == LOOPS | {f"{name}_backward" for name in LOOPS}
    assert torch.equal(graph(other), gradient(network, other))


def test_fake_tensors_have_the_shapes_and_strides() -> None:
    network, x = make_network(), draw(*SIZE, dtype=torch.float32).requires_grad_()
    network.deep_supervision_in_eval = True
    seen: list[list[Any]] = []
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for image in (mode.from_tensor(x), x):
            if image is x:
                mode.__exit__(None, None, None)
            heads = network(image)
            grads = torch.autograd.grad(sum(head.square().sum() for head in heads), [image, *network.parameters()])
            seen.append([(value.shape, value.stride(), value.dtype) for value in (*heads, *grads)])
        mode.__enter__()
    assert seen[0] == seen[1]


def test_transforms_of_torch_func() -> None:
    network, x, direction = make_network(torch.float64), draw(*SIZE), draw(*SIZE, seed=3)
    step = 1e-5
    grad = gradient(network, x)
    curved = (gradient(network, x + step * direction) - gradient(network, x - step * direction)) / (2 * step)
    assert curved.abs().max() > 1e-3

    def value(x: Tensor) -> Tensor:
        return loss(network, x)

    close = torch.testing.assert_close
    close(torch.func.grad(value)(x), grad)
    close(torch.func.jvp(value, (x,), (direction,))[1], (grad * direction).sum())
    close(torch.autograd.functional.hvp(value, x, direction)[1], curved, rtol=1e-6, atol=1e-7)
    close(torch.func.jvp(torch.func.grad(value), (x,), (direction,))[1], curved, rtol=1e-6, atol=1e-7)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(value(forward_ad.make_dual(x, direction))).tangent
    close(tangent, (grad * direction).sum())


def test_gradients_of_each_sample() -> None:
    network, x = make_network(torch.float64), draw(*SIZE)
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def of_sample(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(network, parameters, (sample[None],)).square().mean()

    found = torch.vmap(torch.func.grad(of_sample), in_dims=(None, 0))(parameters, x)
    for index in range(len(x)):
        for name, grad in of_parameters(network, x[index : index + 1]).items():
            torch.testing.assert_close(found[name][index], grad, msg=name)


def test_a_penalty_on_the_gradient() -> None:
    network, x, step = make_network(torch.float64), draw(*SIZE), 1e-6
    network.zero_grad()
    image = x.clone().requires_grad_()
    torch.autograd.grad(loss(network, image), image, create_graph=True)[0].square().sum().backward()
    name, weight = next((name, p) for name, p in network.named_parameters() if name.endswith("columns.0.0.up.weight"))
    assert weight.grad is not None and network.encoder[0][0].conv.bias.grad is not None  # type: ignore[index]
    place = (0, 0, 0, 0, 0) if weight.detach()[0, 0].any() else tuple(weight.detach().nonzero()[0].tolist())
    values = []
    for change in (step, -step):
        with torch.no_grad():
            weight[place] += change
            values.append(gradient_norm(network, x))
            weight[place] -= change
    assert float(weight.grad[place]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5), name


def gradient_norm(network: E2ENet, x: Tensor) -> float:
    with torch.enable_grad():
        return float(gradient(network, x).square().sum())


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_export_takes_any_batch_and_size(strict: bool) -> None:
    network = make_network()
    shapes = {"x": dict.fromkeys((0, 2, 3, 4), torch.export.Dim.AUTO)}
    program = torch.export.export(
        network, (draw(*SIZE, dtype=torch.float32),), dynamic_shapes=shapes, strict=strict
    ).module()
    for size in (SIZE, (1, 1, 4, 8, 8), (3, 1, 6, 16, 12)):
        x = draw(*size, dtype=torch.float32, seed=4)
        torch.testing.assert_close(program(x), network(x), rtol=1e-4, atol=1e-4)


def test_a_trace_can_be_saved_and_takes_any_size() -> None:
    network, file = make_network(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, draw(*SIZE, dtype=torch.float32)), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for size in (SIZE, (3, 1, 6, 16, 12)):
        x = draw(*size, dtype=torch.float32, seed=4)
        assert torch.equal(traced(x), network(x))
    x = draw(*SIZE, dtype=torch.float32)
    traced(x).square().mean().backward()
    expected = of_parameters(network, x)
    for name, parameter in traced.named_parameters():
        assert name not in expected or torch.equal(parameter.grad, expected[name]), name


def test_products_are_counted() -> None:
    x = draw(*SIZE, dtype=torch.float32)
    counts = []
    for network in (make_network(), make_network().to("meta")):
        with FlopCounterMode(display=False) as counter:
            network(x.to(next(network.parameters()).device)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# ---------------------------------------------------------------------------------------------- torch.compile


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    dynamo.reset()
    yield CompileCounterWithBackend("eager")
    dynamo.reset()


def test_counting_the_cost_first_leaves_one_graph(counter: CompileCounterWithBackend) -> None:
    network, x = make_network(), draw(*SIZE, dtype=torch.float32)
    expected = network(x)
    network.compile(backend=counter)
    count_cost(network, (4, 8, 8))
    with dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1 and not dynamo.utils.counters["graph_break"]


def test_the_compiler_does_not_look_into_loops(counter: CompileCounterWithBackend) -> None:
    network, x = make_network(), draw(*SIZE, dtype=torch.float32)
    expected = of_parameters(network, x)
    # What torch's compiler meets under a dispatch mode it skips from then on, and goes into what that calls.
    compiled = torch.compile(
        lambda x: OPERATIONS.norm_act(x, torch.ones(1), torch.zeros(1), 1e-5, 0.01)[0], backend=counter
    )
    with FlopCounterMode(display=False):
        compiled(x)
    torch.testing.assert_close(compiled(x), InstanceNormAct(1)(x))
    network.compile(backend=counter)
    with FlopCounterMode(display=False):
        network(x)
    found = of_parameters(network, x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
