"""nnU-Net's PlainConvUNet in plain torch, for machines without the package dynamic-network-architectures.

A machine with a GPU may have no network to install the package from. Without a U-Net, nothing could be compared. A test
compares it with the package's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from e2enet.network.baselines import stage_features, stage_kernels
from e2enet.network.layers import Triple


class PlainConvUNet(nn.Module):
    """An encoder of strided convolutions, a decoder of transposed ones, two blocks a stage, a head a decoder stage.

    Args:
        strides: (depth, height, width) between the levels.
        base_features: channels at full resolution; they double with each level, up to 320.

    (B, in_channels, D, H, W) gives the logits of every head, full resolution first.
    """

    def __init__(self, in_channels: int, num_classes: int, strides: Sequence[Triple], base_features: int = 32) -> None:
        super().__init__()
        features = stage_features(strides, base_features, 320)
        kernels = [(depth, height, width) for depth, height, width in stage_kernels(strides)]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs, kernel, stride in zip(
            [in_channels, *features], features, kernels, [(1, 1, 1), *strides], strict=False
        ):
            self.encoder.append(_stage(inputs, outputs, kernel, stride))
        self.ups, self.heads = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(strides))):
            outputs, step = features[level], strides[level]
            self.decoder.append(_stage(2 * outputs, outputs, kernels[level], (1, 1, 1)))
            self.ups.append(nn.ConvTranspose3d(features[level + 1], outputs, step, step))
            self.heads.append(nn.Conv3d(outputs, num_classes, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        logits = []
        for up, stage, head, skip in zip(self.ups, self.decoder, self.heads, skips[-2::-1], strict=True):
            x = stage(torch.cat([up(x), skip], dim=1))
            logits.append(head(x))
        return logits[::-1]


def _stage(inputs: int, outputs: int, kernel: Triple, stride: Triple) -> nn.Sequential:
    return nn.Sequential(_block(inputs, outputs, kernel, stride), _block(outputs, outputs, kernel, (1, 1, 1)))


def _block(inputs: int, outputs: int, kernel: Triple, stride: Triple) -> nn.Sequential:
    depth, height, width = (edge // 2 for edge in kernel)
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride, (depth, height, width)),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(inplace=True),
    )
