"""E2ENet: an encoder, a decoder (the sparse fusion grid or a plain U-Net) and segmentation heads.

Source: "E2ENet: Dynamic Sparse Feature Fusion for Accurate and Efficient 3D Medical Image Segmentation"
(arXiv 2312.04727, NeurIPS 2024). The figure in docs/concepts.md draws the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from e2enet.network.blocks import Triple, stack_blocks
from e2enet.network.decoders import FusionGrid, UNetDecoder
from e2enet.network.half_precision import half_precision_pays_on_cpu
from e2enet.network.layers import to_channels_last
from e2enet.network.recompute import Run, run_once
from e2enet.network.shift import check_shift_size

KERNEL_SIZES: tuple[Triple, ...] = ((1, 3, 3), (3, 1, 3), (3, 3, 1), (3, 3, 3))


class E2ENet(nn.Module):
    """3D segmentation network with restricted depth-shift and a fusion grid whose kernels may be sparse.

    Args:
        in_channels: channels of the image (1 for CT, 4 for BraTS).
        num_classes: output channels, background included.
        strides: L-1 triples (depth, height, width), the downsampling between level i-1 and i. L >= 2.
        base_features: channels at full resolution; level i has min(base_features * 2**i, max_features).
        max_features: upper bound of the channels.
        shift_size: number of channel groups m of the depth-shift, odd. 1 means no shift. None means 3 if every
            kernel is (1, 3, 3), else 1: other kernels may not be shifted.
        shift_input: shift the network's input too, as the authors' code does (`e2enet_released`).
        kernel_size: (1, 3, 3), (3, 1, 3), (3, 3, 1) or (3, 3, 3).
        inner_kernel_size: kernel of the fusion nodes before the last diagonal. None means kernel_size. With
            kernel_size (3, 3, 3) the authors' code keeps (1, 3, 3) in these nodes, without shift.
        fusion: "grid" (the paper's) or "unet" (a plain U-Net of the same blocks, without sparse layers).
        deep_supervision: return the logits of every head in training mode.

    Input: (B, in_channels, D, H, W), each size divisible by the product of the strides along its axis. Output: the
    logits (B, num_classes, D, H, W). In training mode with deep supervision it is a list of every head's logits, full
    resolution first, each at its level's resolution. `deep_supervision_in_eval = True` returns the list in eval mode
    too.

    Raises:
        ValueError: for arguments outside these bounds, and in `forward` for an input of the wrong shape.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        *,
        base_features: int = 48,
        max_features: int = 320,
        shift_size: int | None = None,
        shift_input: bool = False,
        kernel_size: Sequence[int] = (1, 3, 3),
        inner_kernel_size: Sequence[int] | None = None,
        fusion: str = "grid",
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.strides = _check_strides(strides)
        kernel = _check_kernel(kernel_size)
        inner_kernel = _check_inner_kernel(inner_kernel_size, kernel, fusion)
        shift = _check_shift(shift_size, kernel, inner_kernel)
        for name, value in {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "base_features": base_features,
            "max_features": max_features,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.deep_supervision, self.deep_supervision_in_eval = deep_supervision, False
        self.run_part: Run = run_once  # how a pass runs stages, nodes and blocks: `checkpoint_activations`
        self.features_per_level = [
            min(base_features * 2**level, max_features) for level in range(len(self.strides) + 1)
        ]

        self.encoder = nn.ModuleList(
            stack_blocks(
                in_channels if level == 0 else self.features_per_level[level - 1],
                features,
                2,
                kernel_size=kernel,
                shift_size=shift,
                stride=(1, 1, 1) if level == 0 else self.strides[level - 1],
                first_shift=1 if level == 0 and not shift_input else None,
            )
            for level, features in enumerate(self.features_per_level)
        )
        self.decoder = _decoder(fusion, self.features_per_level, self.strides, kernel, inner_kernel, shift)
        self.heads = nn.ModuleList(
            nn.Conv3d(self.features_per_level[level], num_classes, 1, bias=False)
            for level in range(self.decoder.num_heads)
        )
        if not deep_supervision:  # else DDP waits for gradients that unused heads never get
            self.heads[1:].requires_grad_(False)
        self.apply(_initialise)

    @property
    def gives_every_head(self) -> bool:
        """Whether a forward pass in the present mode returns a list of every head's logits."""
        return self.deep_supervision if self.training else self.deep_supervision_in_eval

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_input(x, self.in_channels, self.strides)
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not half_precision_pays_on_cpu():
            with torch.autocast("cpu", enabled=False):
                return self._forward(x.float())
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor | list[Tensor]:
        column = []
        x = to_channels_last(x)
        for stage in self.encoder:
            x = self.run_part(stage, x)
            column.append(x)
        every_head = self.gives_every_head
        outputs = self.decoder(column, len(self.heads) if every_head else 1, self.run_part)
        logits = [head(output) for head, output in zip(self.heads, outputs, strict=False)]
        return logits if every_head else logits[0]


def check_input(x: Tensor, in_channels: int, strides: Sequence[Triple]) -> None:
    """Raise ValueError unless `x` is (B, in_channels, D, H, W), B at least 1, and the strides divide each size."""
    if x.ndim != 5 or x.shape[1] != in_channels or x.shape[0] == 0:
        raise ValueError(f"expected an input (B, {in_channels}, D, H, W), got {tuple(x.shape)}; B is at least 1")
    total = [1, 1, 1]
    for stride in strides:
        total = [t * s for t, s in zip(total, stride, strict=True)]
    sizes = tuple(x.shape[2:])
    if any(size == 0 or size % t for size, t in zip(sizes, total, strict=True)):
        below = tuple(max(size // t, 1) * t for size, t in zip(sizes, total, strict=True))
        above = tuple(-(-max(size, 1) // t) * t for size, t in zip(sizes, total, strict=True))
        raise ValueError(
            f"input size (D, H, W) = {sizes} does not fit the strides: each must be a multiple of "
            f"{tuple(total)}; the nearest that fit are {below} and {above}"
        )


def _decoder(
    fusion: str, features: Sequence[int], strides: Sequence[Triple], kernel: Triple, inner_kernel: Triple, shift: int
) -> FusionGrid | UNetDecoder:
    if fusion == "grid":
        return FusionGrid(features, strides, kernel_size=kernel, inner_kernel_size=inner_kernel, shift_size=shift)
    if fusion == "unet":
        return UNetDecoder(features, strides, kernel_size=kernel, shift_size=shift)
    raise ValueError(f'fusion must be "grid" or "unet", got {fusion!r}')


def _check_strides(strides: Sequence[Sequence[int]]) -> list[Triple]:
    """Return the strides as triples; raise ValueError if they are not."""
    triples = [tuple(int(s) for s in stride) for stride in strides]
    if not triples or any(len(triple) != 3 or min(triple) < 1 for triple in triples):
        raise ValueError(
            f"strides must be a list of at least one (depth, height, width) triple of positive integers, got {strides}"
        )
    return [(d, h, w) for d, h, w in triples]


def _check_kernel(kernel_size: Sequence[int], name: str = "kernel_size") -> Triple:
    kernel = tuple(int(size) for size in kernel_size)
    for allowed in KERNEL_SIZES:
        if kernel == allowed:
            return allowed
    raise ValueError(f"{name} must be one of {KERNEL_SIZES}, got {kernel}")


def _check_inner_kernel(inner: Sequence[int] | None, kernel: Triple, fusion: str) -> Triple:
    if inner is None:
        return kernel
    if fusion != "grid":
        raise ValueError(f'inner_kernel_size {tuple(inner)} is of the fusion grid, and fusion is "{fusion}"')
    return _check_kernel(inner, "inner_kernel_size")


def _check_shift(shift_size: int | None, *kernels: Triple) -> int:
    shifted = all(kernel == (1, 3, 3) for kernel in kernels)
    if shift_size is None:
        return 3 if shifted else 1
    check_shift_size(shift_size)
    if shift_size > 1 and not shifted:
        names = " and ".join(map(str, dict.fromkeys(kernels)))
        raise ValueError(
            f"shift_size {shift_size} with kernel_size {names}: the depth-shift belongs to (1, 3, 3), use 1"
        )
    return shift_size


def _initialise(module: nn.Module) -> None:
    """He normal with a = 0.01 for every convolution, biases 0 (as the authors' code)."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
