"""The two decoders: the paper's fusion grid with sparse layers, and a plain U-Net of the same blocks.

Both take the encoder's outputs and return the tensors that the heads read, full resolution first in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from e2enet.network.blocks import BlockStack, ConvBlock, Triple, stack_blocks
from e2enet.network.dsff import register_fusion_layer
from e2enet.network.layers import StrideUp3d
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.recompute import Run, run_once


class FusionNode(nn.Module):
    """X[i, j] = block(cat(X[i, j-1], Up(X[i+1, j-1]), Down(X[i-1, j-1]))); level 0 has no Down part."""

    def __init__(
        self,
        features: int,
        deeper: int,
        shallower: int,
        up_stride: Triple,
        down_stride: Triple | None,
        blocks: int,
        *,
        kernel_size: Triple,
        shift_size: int,
    ) -> None:
        super().__init__()
        self.up = StrideUp3d(deeper, features, up_stride, blocks=True)
        self.down = None if down_stride is None else StrideMaxPool3d(down_stride)
        flows = {"forward": features, "up": features, "down": 0 if self.down is None else shallower}
        self.blocks = stack_blocks(
            sum(flows.values()), features, blocks, kernel_size=kernel_size, shift_size=shift_size
        )
        register_fusion_layer(self.up)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, ConvBlock)
            register_fusion_layer(block.conv, flows=flows if index == 0 else None)

    def forward(self, same: Tensor, deeper: Tensor, *pooled: Tensor, run: Run = run_once) -> Tensor:
        """Return X[i, j] from X[i, j-1], X[i+1, j-1] and, for i > 0, the output of `self.down` for X[i-1, j-1]."""
        x = run(self._fuse, same, deeper, *pooled)
        for block in list(self.blocks)[1:]:
            x = run(block, x)
        return x

    def _fuse(self, same: Tensor, deeper: Tensor, *pooled: Tensor) -> Tensor:
        x: Tensor = self.blocks[0](same, self.up(deeper), *pooled)
        return x


class FusionGrid(nn.Module):
    """The multi-stage fusion: columns j = 1 .. L-1 of nodes at levels i = 0 .. L-1-j (spec section 1).

    `columns[j - 1][i]` is the node X[i, j]. Nodes on the last diagonal (i + j = L-1), which the heads read, have two
    blocks with `kernel_size`. The others have one block with `inner_kernel_size`.
    """

    def __init__(
        self,
        features: Sequence[int],
        strides: Sequence[Triple],
        *,
        kernel_size: Triple,
        inner_kernel_size: Triple,
        shift_size: int,
    ) -> None:
        super().__init__()
        levels = len(features)
        self.num_heads = max(1, levels - 2)
        self.columns = nn.ModuleList(
            nn.ModuleList(
                FusionNode(
                    features[i],
                    features[i + 1],
                    features[i - 1] if i > 0 else 0,
                    strides[i],
                    strides[i - 1] if i > 0 else None,
                    blocks=2 if i + j == levels - 1 else 1,
                    kernel_size=kernel_size if i + j == levels - 1 else inner_kernel_size,
                    shift_size=shift_size,
                )
                for i in range(levels - j)
            )
            for j in range(1, levels)
        )

    def forward(self, column: list[Tensor], heads: int, run: Run = run_once) -> list[Tensor]:
        """Return the outputs of the last diagonal at the first `heads` levels, full resolution first."""
        column, diagonal = list(column), []
        for nodes in self.columns:
            assert isinstance(nodes, nn.ModuleList)
            pooled: list[list[Tensor]] = [[]]
            for i, node in enumerate(nodes[1:]):
                assert isinstance(node, FusionNode) and node.down is not None
                column[i], down = node.down(column[i])
                pooled.append([down])
            column = [node(column[i], column[i + 1], *pooled[i], run=run) for i, node in enumerate(nodes)]
            diagonal.append(column[-1])
        return diagonal[::-1][:heads]


class UNetDecoder(nn.Module):
    """A plain U-Net decoder: each level applies two blocks to cat(up, skip), in that order, and has a head."""

    def __init__(
        self, features: Sequence[int], strides: Sequence[Triple], *, kernel_size: Triple, shift_size: int
    ) -> None:
        super().__init__()
        self.num_heads = len(strides)
        self.ups = nn.ModuleList(
            StrideUp3d(features[i + 1], features[i], stride, blocks=True) for i, stride in enumerate(strides)
        )
        self.stages: Sequence[BlockStack] = nn.ModuleList(  # type: ignore[assignment]
            stack_blocks(2 * width, width, 2, kernel_size=kernel_size, shift_size=shift_size) for width in features[:-1]
        )

    def forward(self, column: list[Tensor], heads: int, run: Run = run_once) -> list[Tensor]:
        """Return the first `heads` levels' outputs, full resolution first."""
        x, outputs = column[-1], []
        for i in reversed(range(len(self.ups))):
            x = run(partial(self._join, i), x, column[i])
            outputs.append(x)
        return outputs[::-1][:heads]

    def _join(self, level: int, deeper: Tensor, skip: Tensor) -> Tensor:
        return self.stages[level](self.ups[level](deeper), skip)
