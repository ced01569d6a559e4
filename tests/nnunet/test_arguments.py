"""E2ENet's arguments under nnU-Net's names, and back."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from e2enet.common.errors import InputError
from e2enet.network import E2ENet
from e2enet.network.nnunet_arguments import e2enet_arguments, nnunet_arguments

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
PLANS: dict[str, Any] = {"n_stages": 3, "features_per_stage": [8, 16, 20], "strides": STRIDES}
# What nnU-Net's planner writes beside, as its plans file has it.
STOCK: dict[str, Any] = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3]] * 3,
    "n_conv_per_stage": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def test_nnunets_arguments_are_e2enets() -> None:
    expected = {
        "strides": [[1, 2, 2], [2, 2, 2]],
        "base_features": 8,
        "max_features": 20,
        "kernel_size": [1, 3, 3],
    }
    assert e2enet_arguments(PLANS) == expected
    assert e2enet_arguments(PLANS | STOCK) == expected
    imported = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    assert e2enet_arguments(PLANS | STOCK | imported) == expected
    assert e2enet_arguments(PLANS | {"shift_size": 5, "fusion": "unet"}) == {
        **expected,
        "shift_size": 5,
        "fusion": "unet",
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"base_features": 4, "max_features": 12},
        {"base_features": 4, "shift_size": 5, "shift_input": True},
        {"base_features": 4, "kernel_size": (3, 3, 3), "inner_kernel_size": (1, 3, 3)},
        {"base_features": 4, "kernel_size": (3, 3, 1)},
        {"base_features": 4, "fusion": "unet"},
    ],
)
def test_a_network_described_and_built_again_is_the_same(settings: dict[str, Any]) -> None:
    network = E2ENet(2, 3, [(1, 2, 2), (2, 2, 2), (2, 2, 2)], **settings)
    again = E2ENet(2, 3, **e2enet_arguments(nnunet_arguments(network)))
    assert str(again) == str(network)
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (network, again)]
    assert shapes[0] == shapes[1]
    shifts = [[getattr(module, "shift_size", None) for module in one.modules()] for one in (network, again)]
    assert shifts[0] == shifts[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_stages": 1}, r"n_stages is 1: a whole number >= 2"),
        ({"strides": [[2, 2, 2], [2, 2, 2], [2, 2, 2]]}, r"strides\[0\] is \[2, 2, 2\]: \[1, 1, 1\] expected"),
        ({"strides": STRIDES[:2]}, r"strides is .*: 3 triples"),
        ({"features_per_stage": [8, 20, 40]}, r"features_per_stage is \[8, 20, 40\].* such as \[8, 16, 32\]"),
        ({"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}, r"kernel_sizes is .*one size for all stages"),
        ({"conv_op": nn.Conv2d}, r"conv_op is .*Conv2d.*: Conv3d expected"),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, r"norm_op is .*InstanceNorm3d expected"),
        ({"norm_op_kwargs": {"eps": 1e-3}}, r"norm_op_kwargs is \{'eps': 0.001\}"),
        ({"dropout_op": nn.Dropout3d}, r"dropout_op is .*None expected"),
        ({"n_conv_per_stage": [2, 3, 2]}, r"n_conv_per_stage is \[2, 3, 2\]: 2 for each of 3 stages"),
        ({"n_blocks_per_stage": [1, 3, 4]}, r"n_blocks_per_stage: unknown; known are"),
    ],
)
def test_what_e2enet_cannot_have_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        e2enet_arguments(PLANS | STOCK | wrong)


def test_all_mistakes_are_told_at_once_and_with_their_place() -> None:
    with pytest.raises(InputError, match=r"(?s)plans.json: .*nonlin is 'torch.nn.ReLU'.*conv_bias is False") as error:
        e2enet_arguments(PLANS | {"conv_bias": False, "nonlin": "torch.nn.ReLU"}, "plans.json")
    assert "LeakyReLU expected" in str(error.value)
    with pytest.raises(InputError, match="features_per_stage is missing"):
        e2enet_arguments({"n_stages": 3, "strides": STRIDES})
