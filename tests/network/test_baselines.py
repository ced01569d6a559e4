"""Baseline networks behind E2ENet's interface: shapes, heads, kernels, gradients, errors for missing packages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.configuration.check import config_problems
from e2enet.network.baselines import SwinUNETR, missing_package, stage_features, stage_kernels
from e2enet.network.build import build_network
from e2enet.network.cost import count_cost
from e2enet.network.dsff import fusion_layers
from e2enet.training.losses import DeepSupervisionLoss, DiceCrossEntropy

STRIDES = [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
NETWORKS = [
    pytest.param(
        "plain_unet", marks=pytest.mark.skipif(missing_package("plain_unet") is not None, reason="no package")
    ),
    "dynunet",
    "swin_unetr",
]


def build(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = {"name": name, "base_features": 4, **settings}
    return build_network(config, in_channels=2, num_classes=3, strides=STRIDES)


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_and_predicts_like_e2enet(name: str) -> None:
    network = build(name)
    x, target = torch.randn(1, 2, 8, 16, 16), torch.randint(3, (1, 8, 16, 16))
    output = network(x)
    heads = [output] if isinstance(output, Tensor) else output
    DeepSupervisionLoss(DiceCrossEntropy())(heads, target).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert count_cost(network, (8, 16, 16)).params == sum(p.numel() for p in network.parameters())
    network.eval()  # counting did not change the weights
    torch.testing.assert_close(network(x), heads[0], rtol=1e-4, atol=1e-5)
    assert network(x).shape == (1, 3, 8, 16, 16) and fusion_layers(network) == {}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("plain_unet", [(8, 16, 16), (8, 8, 8), (4, 4, 4)], marks=NETWORKS[0].marks),  # type: ignore[attr-defined]
        ("dynunet", [(8, 16, 16), (8, 16, 16)]),
    ],
)
def test_heads(name: str, sizes: list[tuple[int, int, int]]) -> None:
    x = torch.randn(1, 2, 8, 16, 16)
    assert [tuple(head.shape[2:]) for head in build(name)(x)] == sizes
    single = build(name, deep_supervision=False)
    single(x).sum().backward()
    assert all(p.grad is not None for p in single.parameters() if p.requires_grad)


def test_kernels_and_channels_as_nnunet_plans_them() -> None:
    assert stage_kernels([(1, 2, 2), (2, 2, 2)]) == [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert stage_kernels([(1, 2, 2), (1, 2, 2)]) == [[1, 3, 3], [1, 3, 3], [3, 3, 3]]
    assert stage_kernels([(2, 2, 2)]) == [[3, 3, 3], [3, 3, 3]]
    assert stage_features([(2, 2, 2)] * 5, 32, 320) == [32, 64, 128, 256, 320, 320]


def test_the_width_multiplies_both_channel_settings() -> None:
    def channels(**settings: Any) -> list[int]:
        return build("e2enet", **settings).features_per_level  # type: ignore[return-value]

    assert channels(base_features=8, max_features=20) == [8, 16, 20, 20]
    assert channels(base_features=8, max_features=20, width=1.5) == [12, 24, 30, 30]
    assert channels(base_features=8, max_features=20, width=0.01) == [1, 1, 1, 1]
    assert build("swin_unetr", base_features=12, width=2).inner.encoder1.layer.conv1.conv.out_channels == 24


@pytest.mark.parametrize(("size", "asked"), [((8, 16, 16), (32, 32, 64)), ((32, 32, 40), (32, 32, 64))])
def test_swin_unetr_pads_what_it_cannot_halve(size: tuple[int, ...], asked: tuple[int, ...]) -> None:
    network = SwinUNETR(1, 2, STRIDES, base_features=12).eval()
    seen: list[Tensor] = []
    network.inner.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 1, *size)
    out = network(x)
    depth, height, width = size
    assert out.shape == (1, 2, *size) and seen[0].shape[2:] == asked
    assert torch.equal(seen[0][:, :, :depth, :height, :width], x) and seen[0].abs().sum() == x.abs().sum()
    torch.testing.assert_close(out, network.inner(seen[0])[:, :, :depth, :height, :width])


def test_attention_is_counted_as_torch_counts_it() -> None:
    network = SwinUNETR(1, 2, STRIDES, base_features=12).eval()
    cost = count_cost(network, (64, 64, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.empty(1, 1, 64, 64, 64, device="meta"))
    assert cost.flops == counter.get_total_flops() and "bmm" in str(counter.get_flop_counts()["Global"])
    assert cost.params == sum(p.numel() for p in network.parameters())


def test_a_linear_layer_by_hand() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Linear(5, 7, bias=False))
    assert count_cost(network, (3, 4, 5)).flops == 2 * (1 * 2) * (3 * 4 * 5) + 2 * (5 * 7) * (2 * 3 * 4)


def test_a_missing_package_is_told_with_the_command_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2enet.network.baselines.PLAIN_UNET_PACKAGE", "no_such_package")
    told = r"no_such_package is not installed; python -m pip install --no-deps dynamic-network-architectures=="
    (problem,) = config_problems(compose_config(["network=plain_unet"]))
    assert problem.startswith("network=plain_unet: ") and "pip install --no-deps" in problem
    with pytest.raises(InputError, match=told):
        build("plain_unet")
    assert config_problems(compose_config(["network=dynunet"])) == []


def test_too_few_levels_for_dynunet() -> None:
    with pytest.raises(InputError, match=r"baselines\.DynUNet: length of kernel_size and strides"):
        build_network({"name": "dynunet"}, in_channels=1, num_classes=2, strides=[(2, 2, 2)])


def test_settings_of_other_networks_are_unknown() -> None:
    def problems(*overrides: str) -> list[str]:
        return config_problems(compose_config(overrides))

    (unknown,) = problems("network=dynunet", "++network.shift_size=3")
    assert unknown.startswith("network.shift_size: unknown key") and "base_features" in unknown
    (masked,) = problems("network=dynunet", "dsff.enabled=true")
    assert masked == "dsff.enabled=true: e2enet.network.baselines.DynUNet has no fusion layers to mask; use dsff=dense"
    (target,) = problems("network=dynunet", "network._target_=monai.networks.nets.Unet2")
    assert target.startswith("network._target_: monai.networks.nets.Unet2 cannot be imported")
