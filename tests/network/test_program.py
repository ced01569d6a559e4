"""A network's program: its operations in order, what each reads, and a backend that lacks one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.export import plain_network
from e2enet.network import E2ENet, connections, cost
from e2enet.network.dsff import init_masks
from e2enet.network.engine import inference, training
from e2enet.network.fused import layers as fused_layers
from e2enet.network.layers import to_channels_last
from e2enet.network.program import BLOCK, EXPANSION, HEAD, KINDS, POOLING, SIZES, Operation, Program, implementation
from e2enet.network.tracing import find_program, read_program

STRIDES = [(1, 2, 2), (2, 2, 2)]
SIZE = (4, 8, 8)


def make(**arguments: Any) -> E2ENet:
    torch.manual_seed(0)
    return E2ENet(2, 3, STRIDES, **{"base_features": 4, **arguments}).double()


def walk(program: Program, x: Tensor, *, release: bool) -> list[Tensor]:
    """Run a program by the modules themselves."""

    def compute(operation: Operation, sources: list[Tensor]) -> Tensor:
        found: Any = operation.module(*sources)
        return found[1] if operation.kind == POOLING else found

    every = range(len(program.operations) + 1)
    values = program.walk(x, compute, () if release else every)
    assert set(values) == set(program.results if release else every)
    return [values[number] for number in program.results]


@pytest.mark.parametrize("fusion", ["grid", "unet"])
@pytest.mark.parametrize("every_head", [False, True])
def test_walking_the_program_is_the_forward_pass(fusion: str, every_head: bool) -> None:
    model = make(fusion=fusion, deep_supervision=every_head)
    x = to_channels_last(torch.randn(1, 2, *SIZE, dtype=torch.float64))
    expected = model(x) if every_head else [model(x)]
    program = read_program(model, training=True)
    for release in (False, True):
        found = walk(program, x, release=release)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    kinds = [operation.kind for operation in program.operations]
    assert kinds.count(BLOCK) == {"grid": 6 + 1 + 2 + 2, "unet": 6 + 2 + 2}[fusion]
    assert kinds.count(HEAD) == len(found) == len(expected)
    used = {id(p) for p in program.parameters()}
    assert used == {id(p) for name, p in model.named_parameters() if p.requires_grad}


def test_an_operation_tells_kernels_and_shifts() -> None:
    model = make(base_features=6)
    init_masks(model, 0.3, generator=torch.Generator().manual_seed(0))
    by_name = {operation.name: operation for operation in read_program(model, training=False).operations}
    node = by_name["decoder.columns.0.0.blocks.0"]
    assert node.kind == BLOCK and node.conv is node.module.conv and node.norm is node.module.norm
    assert torch.equal(node.kernels(), node.conv.kernel_mask)
    assert node.shifts() == [-1] * 4 + [0] * 4 + [1] * 4
    up = by_name["decoder.columns.0.0.up"]
    assert up.kind == EXPANSION and torch.equal(up.kernels(), up.conv.kernel_mask.T) and up.norm is None
    head = by_name["heads.0"]
    assert head.kind == HEAD and bool(head.kernels().all()) and head.shifts() == [0] * 6


@pytest.mark.parametrize("settings", [{}, {"fusion": "unet"}, {"kernel_size": (3, 1, 3)}])
def test_sizes_and_channels_follow_from_the_operations(settings: dict[str, Any]) -> None:
    program, seen = read_program(make(**settings), training=True), []

    def compute(operation: Operation, sources: list[Tensor]) -> Tensor:
        found: Any = operation.module(*sources)
        found = found[1] if operation.kind == POOLING else found
        if found.ndim == 8:  # an expansion's blocks (B, C, D, sd, H, sh, W, sw)
            found = found.flatten(6).flatten(4, 5).flatten(2, 3)
        read = sum(source.shape[1] for source in sources)
        size = operation.output_size(tuple(sources[0].shape[2:]))
        assert (operation.output_channels(read), *size) == tuple(found.shape[1:]), operation.name
        seen.append(operation.kind)
        return found

    program.walk(torch.randn(1, 2, *SIZE, dtype=torch.float64), compute)
    assert set(seen) == set(KINDS.values()) - ({POOLING} if settings.get("fusion") == "unet" else set())


def test_a_program_is_found_only_where_it_tells_everything() -> None:
    class Renamed(E2ENet):
        pass

    class Other(E2ENet):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)

    for kind, known in ((E2ENet, True), (Renamed, True), (Other, False)):
        model = kind(2, 3, STRIDES, base_features=4)
        program = find_program(model)
        assert (program is not None) == known
        assert program is None or len(program.results) == len(model.heads)
        assert model.training and not model.deep_supervision_in_eval
    changed: Any = make()
    changed.encoder[0][0].conv = nn.Sequential(changed.encoder[0][0].conv)
    assert find_program(changed) is None and find_program(nn.Conv3d(1, 1, 1)) is None


@pytest.mark.parametrize(
    "table",
    [
        inference.LAYERS,
        training.LAYERS,
        fused_layers.LAYERS,
        SIZES,
        cost.COUNTED,
        connections.FLOWS,
        plain_network.PLAIN,
    ],
)
def test_every_backend_has_every_kind(table: dict[str, Any]) -> None:
    assert set(table) == set(KINDS.values())


def test_a_missing_kind_is_refused_by_name() -> None:
    (operation,) = (one for one in read_program(make(), training=False).operations if one.kind == HEAD)
    with pytest.raises(InputError, match=r"heads\.0: this backend has no operation 'head', only block, pooling"):
        implementation("this backend", {BLOCK: print, POOLING: print}, operation)
