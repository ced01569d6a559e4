"""How a GPU takes steps: the fastest way that is right, and a line for whatever fails."""

from __future__ import annotations

import copy
import functools
import logging
import re
import time
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from e2enet.common.errors import InputError
from e2enet.network import E2ENet
from e2enet.network.cost import Cost
from e2enet.network.dsff import fusion_layers
from e2enet.network.engine import select_engine, select_training, select_validation
from e2enet.network.engine.timing_cache import TimingCache
from e2enet.network.fused import trial
from e2enet.network.fused.network import FusedNetwork
from e2enet.network.fused.trial import COMPILED, DENSE, FUSED, GROUPS, IMPLICIT, choose_way
from e2enet.network.layers import Triple
from e2enet.network.recompute import checkpoint_activations
from tests.network.fused.test_fused_network import in_groups, make

SIZE = (4, 8, 8)
META = torch.device("meta")


class Slow(nn.Module):
    """Runs a network, and is timed as it says."""

    def __init__(self, network: E2ENet, wrong: Any = None) -> None:
        super().__init__()
        self.network, self.wrong = network, wrong

    def forward(self, x: Tensor) -> Any:
        heads = self.network(x)
        return heads if self.wrong is None else [self.wrong(head) for head in heads]


def ways(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], **made: Any) -> None:
    """Let the named ways run, in the seconds given."""
    monkeypatch.setattr(trial, "make_ways", lambda network: {DENSE: Slow, **made})
    clock = iter([value for way in (DENSE, *made) for value in [0, seconds[way]] * (1 + trial.RUNS)])
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(clock))


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("strides", [[(2, 2, 2)] * 3, [(1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]])
def test_no_way_is_left_out_for_a_new_network(strides: list[Triple], amp_dtype: torch.dtype | None) -> None:
    """The more levels, the more of bfloat16's rounding: torch's own gradients are a quarter off with the second."""
    torch.manual_seed(0)
    network = E2ENet(1, 3, strides=strides, base_features=4, deep_supervision=True)
    choice = choose_way(network, batch_size=1, patch_size=(16, 32, 32), amp_dtype=amp_dtype, ways=trial.CPU_WAYS)
    assert {way: own.problem for way, own in choice.trials.items()} == dict.fromkeys(trial.CPU_WAYS)


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_the_real_ways_are_right_on_a_cpu(amp_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamo.reset()
    eager = CompileCounterWithBackend("eager")  # needs no compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=eager))
    network = make(torch.float32)
    before = copy.deepcopy(network.state_dict())
    choice = choose_way(network, batch_size=1, patch_size=SIZE, amp_dtype=amp_dtype)
    assert eager.frame_count > 0 and set(choice.trials) == {DENSE, FUSED, IMPLICIT, COMPILED}
    for way in (DENSE, FUSED, IMPLICIT, COMPILED):
        assert choice.trials[way].problem is None and choice.trials[way].seconds > 0, choice  # type: ignore[operator]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters()) and network._compiled_call_impl is None
    # The small input must not make torch take the sizes of a patch for variable, which gives slower code.
    arguments = [node.meta.get("example_value") for graph in eager.graphs for node in graph.graph.nodes]
    assert len(arguments) > 0 and not any(isinstance(one, torch.SymInt) for one in arguments)


def test_ways_are_verified_without_tf32_and_timed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 rounds as much as 10 % off gradients of six levels."""
    used: list[tuple[int, str, bool]] = []

    class Watched(Slow):
        def forward(self, x: Tensor) -> Any:
            used.append((len(x), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().forward(x)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        choose_way(make(torch.float32), batch_size=1, patch_size=SIZE, ways={DENSE: Watched})
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert used == [(2, "highest", False), *[(1, "high", True)] * (1 + trial.RUNS)]


def test_groups_are_a_way_where_masks_have_them() -> None:
    network = make(torch.float32)
    assert set(trial.make_ways(network)) == {DENSE, FUSED, IMPLICIT, COMPILED}
    in_groups(network)
    ways = trial.make_ways(network)
    assert list(ways) == [DENSE, FUSED, IMPLICIT, GROUPS, COMPILED]
    run = ways[GROUPS](network)
    assert isinstance(run, FusedNetwork) and run.groups


def test_groups_are_compared_by_active_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(torch.float32)
    in_groups(network)
    ways(monkeypatch, {DENSE: 2, GROUPS: 1}, **{GROUPS: partial(FusedNetwork, groups=True)})
    choice = choose_way(network, batch_size=1, patch_size=SIZE)
    assert choice.way == GROUPS and choice.trials[GROUPS].problem is None
    chosen = select_training(network, GROUPS, amp_dtype=None)
    assert isinstance(chosen, FusedNetwork) and chosen.groups


@pytest.mark.parametrize(("seconds", "expected"), [({DENSE: 2, FUSED: 1}, FUSED), ({DENSE: 1, FUSED: 2}, DENSE)])
def test_the_fastest_is_taken(
    seconds: dict[str, float], expected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ways(monkeypatch, seconds, **{FUSED: FusedNetwork})
    choice = choose_way(make(torch.float32), batch_size=1, patch_size=SIZE)
    assert choice.way == expected and {way: one.seconds for way, one in choice.trials.items()} == seconds
    assert not caplog.records


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda head: head * 1.2, "gradient differs by [0-9]+%"),
        (lambda head: head * torch.nan, "gradient differs by nan%"),
        (lambda head: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_or_fails_is_left_out_with_one_line(
    wrong: Any, problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ways(monkeypatch, {DENSE: 2, FUSED: 1}, **{FUSED: lambda network: Slow(network, wrong)})
    with caplog.at_level(logging.WARNING):
        choice = choose_way(make(torch.float32), batch_size=1, patch_size=SIZE)
    assert choice.way == DENSE and choice.trials[FUSED].seconds is None
    (record,) = caplog.records
    assert record.message.startswith("training.engine=auto: fused is left out: ")
    assert choice.trials[FUSED].problem in record.message
    assert re.search(problem, record.message), record.message


def test_what_is_wrong_with_autocast_alone_is_left_out() -> None:
    def doubled(head: Tensor) -> Tensor:
        return head * 2 if torch.is_autocast_enabled("cpu") else head

    made = {DENSE: Slow, FUSED: lambda network: Slow(network, doubled)}
    network = make(torch.float32)
    choice = choose_way(network, batch_size=1, patch_size=SIZE, amp_dtype=torch.bfloat16, ways=made)
    problem = choice.trials[FUSED].problem
    assert choice.trials[DENSE].problem is None and problem is not None
    assert problem.startswith("gradients in torch.bfloat16 differ by ")


@pytest.mark.parametrize(("factor", "problem"), [(1.2, "20%"), (torch.nan, "nan%")])
def test_a_wrong_gradient_of_one_small_layer_is_seen(
    factor: float, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(FusedNetwork):
        def __init__(self, network: E2ENet) -> None:
            super().__init__(network)
            node: Any = network.decoder.columns[0][0]  # type: ignore[union-attr]
            node.blocks[0].norm.bias.register_hook(lambda grad: grad * factor)

    ways(monkeypatch, {DENSE: 2, FUSED: 1}, **{FUSED: Wrong})
    told = choose_way(make(torch.float32), batch_size=1, patch_size=SIZE).trials[FUSED].problem
    assert told is not None and told.startswith(f"a parameter's gradient differs by {problem}")


def test_a_network_whose_encoder_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(torch.float32)
    for part in (network.encoder, *fusion_layers(network).values()):
        part.requires_grad_(False)
    ways(monkeypatch, {DENSE: 2, FUSED: 1}, **{FUSED: FusedNetwork})
    choice = choose_way(network, batch_size=1, patch_size=SIZE)
    assert choice.way == FUSED and choice.trials[FUSED].problem is None


def test_nothing_of_a_way_is_left_when_the_next_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    class Failing(FusedNetwork):
        def forward(self, x: Tensor) -> Any:
            heads = super().forward(x)
            self.last = self, heads  # as compiled code may, it refers to itself
            tried.append(weakref.ref(self))
            raise torch.OutOfMemoryError("CUDA out of memory")

    def after(network: E2ENet) -> nn.Module:
        assert tried and all(one() is None for one in tried)
        return network

    monkeypatch.setattr(trial, "make_ways", lambda network: {FUSED: Failing, DENSE: after})
    choice = choose_way(make(torch.float32), batch_size=1, patch_size=SIZE)
    assert "out of memory" in str(choice.trials[FUSED].problem) and choice.trials[DENSE].problem is None


def test_where_torch_has_no_memory_another_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Slow):
        def forward(self, x: Tensor) -> Any:
            if x.shape[2:] == (8, 16, 16):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    monkeypatch.setattr(trial, "make_ways", lambda network: {DENSE: Large, FUSED: FusedNetwork})
    choice = choose_way(make(torch.float32), batch_size=1, patch_size=(8, 16, 16))
    assert choice.way == FUSED and "out of memory" in str(choice.trials[DENSE].problem)


def test_engines_by_name() -> None:
    network = make(torch.float32)
    assert isinstance(select_training(network, FUSED, amp_dtype=None), FusedNetwork)
    assert isinstance(select_validation(network.eval(), FUSED, amp_dtype=None), FusedNetwork)
    network.train()
    chosen = select_training(network, IMPLICIT, amp_dtype=None)
    assert isinstance(chosen, FusedNetwork) and chosen.implicit and not chosen.groups
    assert select_validation(network.eval(), IMPLICIT, amp_dtype=None).implicit
    predicting = select_engine(network, FUSED, device=torch.device("cpu"), patch_size=SIZE)
    x = torch.randn(1, 2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(predicting(x), network(x), rtol=1e-4, atol=1e-4)
    for way in (DENSE, COMPILED):
        assert select_validation(network, way, amp_dtype=None) is network
    assert select_training(network.train(), COMPILED, amp_dtype=None) is network
    assert network._compiled_call_impl is not None


def test_an_engine_that_cannot_be_fused_is_told() -> None:
    with pytest.raises(
        InputError, match=r"training\.engine=fused: the fused pass cannot run this network: Conv3d is no"
    ):
        select_training(nn.Conv3d(1, 1, 1), FUSED, amp_dtype=None)
    network = make(torch.float32)
    checkpoint_activations(network)
    with pytest.raises(InputError, match="recomputes torch's own pass"):
        select_training(network, FUSED, amp_dtype=None)


@pytest.mark.parametrize("winner", ["fused", "torch"])
def test_prediction_elsewhere_takes_the_fastest_that_is_right(winner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here its part is taken by the meta device, whose values cannot be compared."""
    network = make(torch.float32).to("meta").eval()
    offered: list[set[str]] = []

    def fastest(self: TimingCache, described: str, ways: Any, seconds: float) -> str:
        offered.append(set(ways))
        return winner

    monkeypatch.setattr(TimingCache, "fastest", fastest)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.no_grad())
    assert select_engine(network, "auto", device=META, patch_size=SIZE) is network and offered == []  # not verified
    monkeypatch.setattr("e2enet.network.engine.select.count_cost", lambda *_: Cost(0, 0))
    monkeypatch.setattr("e2enet.network.engine.select.check_itself", lambda *_, **__: None)
    chosen = select_engine(network, "auto", device=META, patch_size=SIZE)
    assert offered == [{"fused", "torch"}]
    assert chosen is network if winner == "torch" else isinstance(chosen, FusedNetwork)


def test_seconds_are_those_of_the_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of logits and gradients to the host, for the comparison, are not timed."""
    events: list[str] = []
    values = trial._values
    clock = SimpleNamespace(perf_counter=lambda: events.append("clock") or time.perf_counter())
    monkeypatch.setattr(trial, "time", clock)
    monkeypatch.setattr(trial, "_values", lambda *given: events.append("copies") or values(*given))
    choice = choose_way(make(torch.float32), batch_size=1, patch_size=SIZE)
    assert choice.trials[DENSE].seconds is not None
    while "clock" in events:  # no copy between the clock's pairs
        first = events.index("clock")
        assert events[first + 1] == "clock"
        del events[first : first + 2]
    assert events.count("copies") == 1 + len(choice.trials)
