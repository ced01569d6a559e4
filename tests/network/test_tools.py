"""The network's loops are torch operations, so each of torch's tools gives a right result or is refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from monai.data.meta_tensor import MetaTensor
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
from e2enet.network.norm import InstanceNormAct
from tests.network.test_operations import LOOPS, OPERATIONS, draw

SIZE = (2, 1, 4, 8, 8)


def make_network(dtype: torch.dtype = torch.float32) -> E2ENet:
    torch.manual_seed(0)
    network = E2ENet(1, 2, [(1, 2, 2), (2, 2, 2)], base_features=3, max_features=6).eval().to(dtype)
    init_masks(network, 0.6, generator=torch.Generator().manual_seed(1))
    return network


def loss(network: E2ENet, x: Tensor) -> Tensor:
    return network(x).square().mean()


def gradient(network: E2ENet, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(network, x), x)[0]


def of_parameters(network: E2ENet, x: Tensor) -> dict[str, Tensor]:
    """Return the loss's gradients, without parameters that it does not reach."""
    network.zero_grad()
    loss(network, x).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


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


@pytest.mark.parametrize("settings", [{}, {"kernel_size": (3, 3, 3)}], ids=str)
def test_samples_of_a_vmap(settings: dict[str, Any]) -> None:
    network, x = E2ENet(1, 2, [(1, 2, 2)], base_features=3, **settings).eval(), draw(*SIZE, dtype=torch.float32)
    torch.testing.assert_close(torch.vmap(lambda sample: network(sample[None])[0])(x), network(x), rtol=0, atol=1e-4)


def test_a_tensor_of_a_class_of_its_own() -> None:
    """MONAI's transforms return such tensors."""
    network, x = make_network(), draw(*SIZE, dtype=torch.float32)
    assert torch.equal(network(MetaTensor(x)).as_tensor(), network(x))
    assert torch.equal(gradient(network, MetaTensor(x)).as_tensor(), gradient(network, x))


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


@pytest.mark.slow
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
    dynamo.utils.counters.clear()  # graph breaks of other tests
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
    # torch's compiler skips a frame that it once met under a dispatch mode, and then traces the functions it calls.
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
