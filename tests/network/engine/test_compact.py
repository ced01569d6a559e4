"""A compact network gives the outputs of its model."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from e2enet.network.dsff import fusion_layers, init_masks, set_group_size
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine import compact, inner_loops, select_engine, timing_cache, vector_code
from e2enet.network.engine.dense import DenseConvolution
from e2enet.network.engine.inference import BFLOAT16, DENSE, SPARSE, CompactNetwork
from e2enet.network.engine.sparse_layers import Convolution
from e2enet.network.engine.timing_cache import TimingCache
from e2enet.network.fused.network import FusedNetwork

STRIDES = [(1, 2, 2), (2, 2, 2)]
SIZE = (8, 16, 20)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": 0.02},
    {"density": 1.0},
    {"shift_size": 1},
    {"shift_size": 5, "shift_input": True},
    {"kernel_size": (3, 3, 3)},
    {"kernel_size": (3, 1, 3)},
    {"kernel_size": (3, 3, 1)},
    {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3)},
    {"fusion": "unet"},
    {"strides": [(2, 2, 2), (1, 2, 1), (2, 1, 2)], "density": 0.2},
    {"deep_supervision": False},
]


def make_model(density: float = 0.3, *, strides: Any = STRIDES, base: int = 6, **settings: Any) -> E2ENet:
    torch.manual_seed(0)
    model = E2ENet(2, 5, strides, base_features=base, **settings).eval()
    if fusion_layers(model):
        init_masks(model, density, generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm.bias")):
            torch.nn.init.normal_(parameter, 0.5, 0.4)  # some below 0
    return model


def outputs(model: E2ENet, compacted: torch.nn.Module, batch: int = 2, size: Any = SIZE) -> tuple[Any, ...]:
    x = torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return compacted(x), model(x)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_it_gives_what_the_model_gives(settings: dict[str, Any]) -> None:
    model = make_model(**settings)
    found, expected = outputs(model, CompactNetwork(model, choose=False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("group_size", [8, 16])
def test_groups_run_the_same_way(group_size: int) -> None:
    model = make_model(1.0, base=16)
    set_group_size(model, group_size)
    init_masks(model, 0.25, generator=torch.Generator().manual_seed(1))
    found, expected = outputs(model, CompactNetwork(model, choose=False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_channels_that_nobody_reads_are_not_computed() -> None:
    model = make_model(0.5)
    node: Any = model.decoder.columns[0][0]  # type: ignore[union-attr]
    reader: Any = model.decoder.columns[1][0].blocks[0].conv  # type: ignore[union-attr]
    whole = CompactNetwork(model, choose=False)
    # Channels 1 and 4 of the node are read only through the forward flow of the next one: level 0 has no other reader.
    reader.kernel_mask[:, [1, 4]] = False
    reader.weight.data[:, [1, 4]] = 0
    compacted = CompactNetwork(model, choose=False)
    found, expected = outputs(model, compacted)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    def written(network: CompactNetwork) -> int:
        (step,) = (step for step in network.steps if step.name == "decoder.columns.0.0.blocks.0")
        assert isinstance(step.layer, Convolution)
        return len(step.layer.kernels.nonzero_outputs)

    assert written(whole) == node.blocks[0].conv.out_channels and written(compacted) == written(whole) - 2


def test_a_node_that_nobody_reads_is_left_out() -> None:
    model = make_model(0.5)
    reader: Any = model.decoder.columns[1][0].blocks[0].conv  # type: ignore[union-attr]
    reader.kernel_mask[:, 6:] = False  # the upward flow
    reader.weight.data[:, 6:] = 0
    compacted = CompactNetwork(model, choose=False)
    found, expected = outputs(model, compacted)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    names = [step.name for step in compacted.steps]
    assert "decoder.columns.0.0.blocks.0" in names and "decoder.columns.0.1.blocks.0" not in names


def test_compact_takes_any_model() -> None:
    model = make_model()
    for mode in (True, False):
        network = compact(model.train(mode))
        assert isinstance(network, CompactNetwork) and model.training == mode
        found, expected = outputs(model.eval(), network)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert not found.requires_grad
        assert not network.training
    plain = torch.nn.Conv3d(2, 5, 3)
    assert compact(plain) is plain
    unmasked = E2ENet(2, 5, STRIDES, base_features=4).eval()
    torch.testing.assert_close(*outputs(unmasked, compact(unmasked)), rtol=0, atol=1e-4)


def test_every_head_is_given_where_the_model_gives_them() -> None:
    model = make_model(strides=[(1, 2, 2), (2, 2, 2), (1, 2, 1)])
    model.deep_supervision_in_eval = True
    found, expected = outputs(model, CompactNetwork(model, choose=False), size=(8, 16, 24))
    assert len(found) == len(expected) > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    chosen = select_engine(model, "auto", device=torch.device("cpu"), patch_size=(8, 16, 24))
    torch.testing.assert_close(outputs(model, chosen, size=(8, 16, 24))[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_the_fused_pass_is_tried_in_bfloat16_where_a_processor_has_it(
    native: bool, amp_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def last(self: Any, description: str, ways: Any, seconds: float = 0) -> str:
        if description.startswith("network"):
            tried.extend(ways)
            for way in ways.values():
                way()()
        return "fused" if "fused" in ways else next(iter(ways))

    monkeypatch.setattr(TimingCache, "fastest", last)
    monkeypatch.setattr("e2enet.network.engine.select.bfloat16_is_native", lambda: native)
    monkeypatch.setattr("e2enet.network.e2enet.half_precision_pays_on_cpu", lambda: False)  # the model's own pass
    model = make_model()
    chosen = select_engine(model, "auto", device=torch.device("cpu"), patch_size=SIZE, amp_dtype=amp_dtype)
    expects_fused = native and amp_dtype is not None
    assert tried == ["sparse", *(["fused"] if expects_fused else []), "torch"]
    assert isinstance(chosen, FusedNetwork if expects_fused else CompactNetwork)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp_dtype is not None):
        found, expected = outputs(model, chosen)
    assert found.dtype == (torch.bfloat16 if expects_fused else torch.float32)
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=0.1 if expects_fused else 1e-4)


def test_networks_are_timed_with_as_many_patches_as_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's threads take whole samples of a batch; torch takes one patch after the other."""
    batches: dict[str, list[int]] = {}
    own, compacted = E2ENet.forward, CompactNetwork.forward

    def run_all(self: Any, description: str, ways: Any, seconds: float = 0) -> str:
        if description.startswith("network"):
            assert "on 3 of 8 x 16 x 20" in description
            for name, way in ways.items():
                seen = batches.setdefault(name, [])
                monkeypatch.setattr(E2ENet, "forward", _noted(own, seen))
                monkeypatch.setattr(CompactNetwork, "forward", _noted(compacted, seen))
                way()()
        return next(iter(ways))

    monkeypatch.setattr(TimingCache, "fastest", run_all)
    monkeypatch.setattr(CompactNetwork, "samples_at_once", lambda self, size: 3)
    select_engine(make_model(), "auto", device=torch.device("cpu"), patch_size=SIZE)
    assert batches == {"sparse": [3], "torch": [1, 1, 1]}


def _noted(forward: Any, seen: list[int]) -> Any:
    def run(self: Any, x: Tensor) -> Any:
        seen.append(len(x))
        return forward(self, x)

    return run


def test_a_layer_is_measured_for_each_number_of_samples(tmp_path: Path) -> None:
    compacted = CompactNetwork(make_model(), choices=TimingCache(tmp_path / "engine.json"))
    for batch in (1, 2, 1):
        compacted(torch.randn(batch, 2, *SIZE))
    samples = [number for _, _, number in compacted.ways]
    assert set(samples) == {1, 2} and samples.count(1) == samples.count(2) > 0


def test_inputs_of_the_wrong_shape_are_refused() -> None:
    compacted = CompactNetwork(make_model(), choose=False)
    with pytest.raises(ValueError, match=r"expected an input \(B, 2, D, H, W\)"):
        compacted(torch.zeros(1, 1, *SIZE))
    with pytest.raises(ValueError, match="each must be a multiple of"):
        compacted(torch.zeros(1, 2, 8, 16, 18))


@pytest.mark.parametrize("winner", [SPARSE, DENSE])
def test_every_layer_runs_the_way_that_was_fastest(
    winner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    made: list[DenseConvolution] = []

    def dense_convolution(*arguments: Any) -> DenseConvolution:
        made.append(DenseConvolution(*arguments))
        return made[-1]

    def seconds(way: Any, _: float) -> float:
        way()
        dense = isinstance(way.func, DenseConvolution)
        measured.append(DENSE if dense else SPARSE)
        return 1.0 if dense == (winner == DENSE) else 2.0

    monkeypatch.setattr(timing_cache, "_seconds", seconds)
    monkeypatch.setattr("e2enet.network.engine.inference.DenseConvolution", dense_convolution)
    model, path = make_model(), tmp_path / "cache" / "engine.json"
    compacted = CompactNetwork(model, choices=TimingCache(path))
    found, expected = outputs(model, compacted)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    convolutions = [step for step in compacted.steps if isinstance(step.layer, Convolution)]
    assert set(compacted.ways.values()) == {winner} and len(compacted.ways) == len(convolutions)
    assert all(set(step.made) == {winner} - {SPARSE} for step in convolutions) and measured
    count = len(measured)
    # Another network of the same layers finds the file, measures nothing and builds only the chosen ways.
    made.clear()
    again = CompactNetwork(model, choices=TimingCache(path))
    torch.testing.assert_close(outputs(model, again)[0], found, rtol=0, atol=0)
    assert len(measured) == count and again.ways == compacted.ways
    assert len(made) == (len(convolutions) if winner == DENSE else 0)
    # A new shape is measured at its first use. Choices for the first shape remain.
    for size in ((4, 8, 12), SIZE):
        found, expected = outputs(model, again, size=size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert len(measured) == 2 * count and len(again.ways) == 2 * len(compacted.ways)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_tried_where_it_is_allowed_and_native(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2enet.network.engine.inference.bfloat16_is_native", lambda: native)
    for allowed in (False, True):
        path = tmp_path / f"{allowed}.json"
        model = make_model()
        found, expected = outputs(model, CompactNetwork(model, bfloat16=allowed, choices=TimingCache(path)))
        torch.testing.assert_close(found, expected, rtol=0, atol=0.3 if allowed else 1e-4)
        (measured,) = json.loads(path.read_text()).values()
        assert all(
            set(ways) == {SPARSE, DENSE} | ({BFLOAT16} if allowed and native else set()) for ways in measured.values()
        )


@pytest.mark.parametrize("name", ["haswell", "x86-64"])
def test_a_processor_without_wide_registers_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("code for x86-64 cannot run here")
    functions = [value for value in vars(inner_loops).values() if hasattr(value, "cache_clear") and callable(value)]
    assert len(functions) == 5
    monkeypatch.setattr(vector_code, "processor", lambda: (name, ""))
    try:
        for function in functions:
            function.cache_clear()
        model = make_model()
        found, expected = outputs(model, CompactNetwork(model, choose=False))
    finally:
        for function in functions:
            function.cache_clear()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
