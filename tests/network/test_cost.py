"""Counted costs equal the published columns (spec section 5) within 0.2 %."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from e2enet.network import E2ENet
from e2enet.network.cost import CONVENTIONS, count_cost
from e2enet.network.dsff import init_masks
from e2enet.network.tracing import find_program

FIVE_STRIDES = [(2, 2, 2)] * 5

# in, out, patch, density of layers with dim 0 = 48, density of the others, params M, paper GFLOP, exact GFLOP
ROWS = {
    "AMOS-CT S=0.7": (1, 16, 128, 0.2, 0.3, 11.229, 968.54, 655.32),
    "AMOS-CT S=0.8": (1, 16, 128, 0.2, 0.2, 9.445, 777.84, 569.02),
    "AMOS-CT S=0.9": (1, 16, 128, 0.1, 0.1, 7.639, 491.47, 387.06),
    "dense fusion": (1, 16, 128, 1.0, 1.0, 23.899, 3068.79, 2024.71),
    "BraTS S=0.7": (4, 4, 128, 0.3, 0.3, 11.245, 1066.44, None),
    "BTCV S=0.7": (1, 14, 96, 0.3, 0.3, 11.251, 448.74, None),
}


@pytest.mark.parametrize("row", ROWS)
def test_published_columns(row: str) -> None:
    channels, classes, patch, density_48, density, params, paper, exact = ROWS[row]
    network = E2ENet(channels, classes, FIVE_STRIDES)
    if density < 1:
        init_masks(network, density, density_by_dim0={48: density_48})
    cost = count_cost(network, (patch,) * 3, "paper")
    assert cost.params / 1e6 == pytest.approx(params, rel=2e-3)
    assert cost.flops / 1e9 == pytest.approx(paper, rel=2e-3)
    if exact is not None:
        assert count_cost(network, (patch,) * 3).flops / 1e9 == pytest.approx(exact, rel=2e-3)


class PlainUNet(nn.Module):
    """nnU-Net's plain network as in the table: 6 stages of two 3x3x3 blocks, 32..320, strides 2, a head per level."""

    def __init__(self, in_channels: int = 1, classes: int = 16) -> None:
        super().__init__()
        widths = [32, 64, 128, 256, 320, 320]
        self.deep_supervision = False

        def block(start: int, width: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv3d(start, width, 3, stride, 1)
            return nn.Sequential(conv, nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU())

        self.down = nn.ModuleList(
            nn.Sequential(block(in_channels if i == 0 else widths[i - 1], w, 2 if i else 1), block(w, w))
            for i, w in enumerate(widths)
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(widths[i + 1], widths[i], 2, 2) for i in range(5))
        self.stages = nn.ModuleList(nn.Sequential(block(2 * w, w), block(w, w)) for w in widths[:-1])
        self.heads = nn.ModuleList(nn.Conv3d(w, classes, 1) for w in widths[:-1])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        skips, outputs = [], []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for i in reversed(range(5)):
            x = self.stages[i](torch.cat([self.up[i](x), skips[i]], 1))
            if self.deep_supervision or i == 0:
                outputs.append(self.heads[i](x))
        return outputs


def test_plain_unet_of_another_maker() -> None:
    network = PlainUNet()
    paper, exact = (count_cost(network, (128,) * 3, convention) for convention in ("paper", "exact"))
    assert paper.params / 1e6 == pytest.approx(31.207, rel=2e-3)
    assert paper.flops / 1e9 == pytest.approx(1067.00, rel=2e-3)
    assert exact.flops / 1e9 == pytest.approx(956.34, rel=2e-3)
    assert network.deep_supervision is False and network.training


def test_one_layer_by_hand() -> None:
    network = nn.Conv3d(3, 5, (1, 3, 3), padding=(0, 1, 1))
    cost = count_cost(network, (4, 6, 8))
    assert cost.params == 3 * 5 * 9 + 5
    assert cost.flops == 2 * 3 * 5 * 9 * 4 * 6 * 8


class OtherForward(E2ENet):
    """The same network, whose program is not read, since its forward pass could be any: torch's meta device counts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        return super().forward(x)


@pytest.mark.parametrize(
    "settings",
    [{}, {"fusion": "unet"}, {"kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3)}, {"deep_supervision": False}],
)
def test_the_program_tells_what_a_forward_pass_multiplies(settings: dict[str, Any]) -> None:
    costs = []
    for kind in (E2ENet, OtherForward):
        network = kind(2, 3, [(1, 2, 2), (2, 2, 2), (1, 1, 1), (2, 1, 2)], base_features=4, **settings)
        init_masks(network, 0.3, generator=torch.Generator().manual_seed(0))
        assert (find_program(network) is None) == (kind is OtherForward)
        costs.append([count_cost(network, (4, 8, 24), convention) for convention in CONVENTIONS])
    assert costs[0] == costs[1] and costs[0][0] != costs[0][1]


def test_every_head_is_counted_whatever_the_mode_and_nothing_changes() -> None:
    strides = [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
    costs = set()
    for deep in (True, False):
        network = E2ENet(1, 3, strides, base_features=4, deep_supervision=deep)
        for mode in (True, False):
            network.train(mode)
            costs.add(count_cost(network, (8, 16, 16)))
            assert network.training is mode and network.deep_supervision is deep
            assert network.deep_supervision_in_eval is False
            assert not any(module._forward_hooks for module in network.modules())
            assert all(p.device.type == "cpu" for p in network.parameters())
    assert len(costs) == 1


def test_modules_registered_twice_and_tied_weights_are_counted_once_and_put_back() -> None:
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 3, padding=1))
    network.append(network[0])  # the same module under a second name
    network[1].weight = network[0].weight  # another module with the same weight
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cost = count_cost(network, (2, 3, 4))
    assert cost.params == 27 + 2 and cost.flops == 3 * 2 * 27 * 24
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert network[1].weight is network[0].weight


def test_wrong_convention_and_size() -> None:
    network = E2ENet(1, 2, [(2, 2, 2)], base_features=4)
    with pytest.raises(ValueError, match="convention"):
        count_cost(network, (8, 8, 8), "ours")
    with pytest.raises(ValueError, match="multiple of"):
        count_cost(network, (7, 8, 8))
