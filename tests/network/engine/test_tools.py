"""The engine reads numbers, so it refuses torch's tools that run it on tensors without plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.engine.training import TrainingEngine
from tests.network.engine.test_compact import make_model

X = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def fake(run: Any) -> None:
    with FakeTensorMode() as mode:
        run(mode.from_tensor(X))


def dual(run: Any) -> None:
    with forward_ad.dual_level():
        run(forward_ad.make_dual(X, X))


TOOLS: dict[str, Callable[[Any], Any]] = {
    "make_fx": lambda run: make_fx(lambda x: run(x))(X),
    "FakeTensorMode": fake,
    "torch.jit.trace": lambda run: torch.jit.trace(lambda x: run(x), X),
    "a transform of torch.func": lambda run: torch.vmap(run)(X[None]),
    "a forward-mode derivative": dual,
}


@pytest.fixture(scope="module", params=["a compact network", "a training engine"])
def engine(request: pytest.FixtureRequest) -> tuple[str, Any]:
    model = make_model(0.3)
    if request.param == "a compact network":
        return request.param, CompactNetwork(model, choose=False)
    return request.param, TrainingEngine(model.train())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_are_refused_by_name(tool: str, engine: tuple[str, Any]) -> None:
    name, run = engine
    with pytest.raises(RuntimeError, match=f"{tool} cannot look into {name}; give it the network"):
        TOOLS[tool](run)


def test_an_export_is_refused(engine: tuple[str, Any]) -> None:
    name, run = engine
    if name == "a compact network":
        with pytest.raises(RuntimeError, match=r"torch\.export cannot look into a compact network"):
            torch.export.export(run, (X,), strict=False)  # else torch 2.6 refuses it in its own words


class Watch(TorchDispatchMode):
    """See every operation and let it run."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_tools_that_only_watch_are_welcome(engine: tuple[str, Any]) -> None:
    _, run = engine
    expected = run(X)
    with Watch():
        torch.testing.assert_close(run(X), expected)
    torch.testing.assert_close(torch.compile(run, backend="eager")(X), expected)


def test_gradients_of_gradients_are_refused() -> None:
    model = make_model(0.3).train()
    heads: list[Tensor] = TrainingEngine(model)(X)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="gradients of a training engine cannot be differentiated"):
        torch.autograd.grad(heads[0].sum(), model.heads[0].weight, create_graph=True)
