"""Baseline networks from their authors' packages, behind E2ENet's interface.

In eval mode each returns full-resolution logits. In training mode a network with several heads returns the logits of
all of them, full resolution first. None has fusion layers, so DSFF finds nothing to mask.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from e2enet.common.errors import InputError

PLAIN_UNET_PACKAGE = "dynamic_network_architectures"
# Without its dependencies: they install torchvision and, with it, another torch. The U-Net needs neither.
PLAIN_UNET_INSTALL = "python -m pip install --no-deps dynamic-network-architectures==0.4.4"


def missing_package(target: str) -> str | None:
    """Return how to install the package that a network's `_target_` lacks; None if none is missing."""
    if not target.endswith(f".{PlainUNet.__name__}") or importlib.util.find_spec(PLAIN_UNET_PACKAGE) is not None:
        return None
    return f"network=plain_unet: the package {PLAIN_UNET_PACKAGE} is not installed; {PLAIN_UNET_INSTALL}"


class PlainUNet(nn.Module):
    """nnU-Net's plain U-Net (Isensee et al. 2021), from the package dynamic-network-architectures.

    Each stage has two blocks of convolution, instance norm and LeakyReLU. Strided convolutions lead down, transposed
    ones up. Every decoder stage has a head. Stage i has min(base_features * 2**i, max_features) channels and the
    kernels of `stage_kernels`.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        *,
        base_features: int = 32,
        max_features: int = 320,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        problem = missing_package(f"{__name__}.PlainUNet")
        if problem:
            raise InputError(problem)
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        features = stage_features(strides, base_features, max_features)
        self.in_channels = in_channels
        self.inner: Any = PlainConvUNet(
            input_channels=in_channels,
            n_stages=len(features),
            features_per_stage=features,
            conv_op=nn.Conv3d,
            kernel_sizes=stage_kernels(strides),
            strides=[[1, 1, 1], *map(list, strides)],
            n_conv_per_stage=2,
            num_classes=num_classes,
            n_conv_per_stage_decoder=2,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        self.inner.apply(self.inner.initialize)
        self.deep_supervision, self.deep_supervision_in_eval = deep_supervision, False
        if not deep_supervision:  # unused heads must not wait for gradients that never come (DDP)
            self.inner.decoder.seg_layers[:-1].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.inner.decoder.deep_supervision = self.deep_supervision if self.training else self.deep_supervision_in_eval
        return self.inner(x)


class DynUNet(nn.Module):
    """MONAI's DynUNet, its version of nnU-Net's U-Net, with the channels and kernels of `PlainUNet`.

    Its heads are at levels 0 to L-3, as in E2ENet, all upsampled to full resolution. It needs three levels or more.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        *,
        base_features: int = 32,
        max_features: int = 320,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        from monai.networks.nets import DynUNet as MonaiDynUNet

        steps = [list(stride) for stride in strides]
        self.in_channels = in_channels
        self.inner: Any = MonaiDynUNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=num_classes,
            kernel_size=stage_kernels(strides),
            strides=[[1, 1, 1], *steps],
            upsample_kernel_size=steps,
            filters=stage_features(strides, base_features, max_features),
            deep_supervision=deep_supervision and len(steps) > 2,
            deep_supr_num=max(1, len(steps) - 2),
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        out: Tensor = self.inner(x)
        return list(out.unbind(1)) if out.ndim == 6 else out  # MONAI stacks its heads: (B, heads, K, D, H, W)


class SwinUNETR(nn.Module):
    """MONAI's SwinUNETR (Hatamizadeh et al. 2022): shifted-window attention and a convolutional decoder, one head.

    It halves every axis five times, whatever the strides are. Sizes that are not multiples of 32 are padded with zeros
    at the far ends, and the logits are cropped. `base_features` is rounded to the nearest multiple of 12, which the
    attention heads require.
    """

    def __init__(
        self, in_channels: int, num_classes: int, strides: Sequence[Sequence[int]], *, base_features: int = 48
    ) -> None:
        super().__init__()
        from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

        self.in_channels = in_channels
        arguments = inspect.signature(MonaiSwinUNETR).parameters
        # Until 1.4 MONAI asks for a size, which it only checks.
        size: dict[str, Any] = {"img_size": (64, 64, 64)} if "img_size" in arguments else {}
        features = 12 * max(1, round(base_features / 12))
        with warnings.catch_warnings():  # MONAI warns about its own future arguments
            warnings.simplefilter("ignore", FutureWarning)
            self.inner: Any = MonaiSwinUNETR(
                in_channels=in_channels, out_channels=num_classes, feature_size=features, **size
            )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        padded = [-(-edge // 32) * 32 for edge in size]
        if max(padded) == 32:
            padded[-1] = 64  # instance norm cannot normalise a single voxel, which would be left at the bottom
        added = [end - edge for edge, end in zip(size, padded, strict=True)]
        out: Tensor = self.inner(F.pad(x, (0, added[2], 0, added[1], 0, added[0])))
        return out[:, :, : size[0], : size[1], : size[2]]


def stage_features(strides: Sequence[Sequence[int]], base_features: int, max_features: int) -> list[int]:
    """Return the channels of the stages: doubled from stage to stage, at most `max_features`."""
    return [min(base_features * 2**stage, max_features) for stage in range(len(strides) + 1)]


def stage_kernels(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the stages' kernel sizes: 3 along axes that are downsampled so far or next, else 1; 3 at the last stage.

    This is nnU-Net's rule: a coarse depth axis is not convolved before the others have come near its spacing. Strides
    (1, 2, 2), (2, 2, 2) give the kernels (1, 3, 3), (3, 3, 3), (3, 3, 3).
    """
    kernels, seen = [], [False, False, False]
    for stride in [*strides, (2, 2, 2)]:
        seen = [before or step > 1 for before, step in zip(seen, stride, strict=True)]
        kernels.append([3 if axis else 1 for axis in seen])
    return kernels
