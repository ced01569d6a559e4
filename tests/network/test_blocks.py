"""The block: its parts, and the same result on the plain path that a compiler takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from e2enet.network.blocks import ConvBlock, stack_blocks
from e2enet.network.shift import shift_concat, shift_depth


def test_a_block_is_shift_conv_norm_and_activation() -> None:
    torch.manual_seed(0)
    block = ConvBlock(5, 4).double()
    sources = [torch.randn(2, channels, 3, 6, 5, dtype=torch.float64) for channels in (2, 3)]
    shifted = shift_concat(sources, 3)
    convolved = F.conv3d(shifted, block.conv.weight, block.conv.bias, padding=(0, 1, 1))
    expected = F.leaky_relu(F.instance_norm(convolved, eps=1e-5), 0.01)
    torch.testing.assert_close(block(*sources), expected)


def test_only_the_first_block_of_a_stack_is_strided() -> None:
    stack = stack_blocks(2, 4, 3, kernel_size=(1, 3, 3), shift_size=3, stride=(2, 2, 2), first_shift=1)
    assert [block.conv.stride for block in stack] == [(2, 2, 2), (1, 1, 1), (1, 1, 1)]
    assert [block.shift_size for block in stack] == [1, 3, 3]
    assert stack(torch.zeros(1, 2, 4, 8, 8)).shape == (1, 4, 2, 4, 4)


@pytest.mark.parametrize("shift", [-5, -1, 0, 2, 5])
def test_shift_depth_fills_with_zeros(shift: int) -> None:
    x = torch.arange(1.0, 5.0).view(1, 1, 4, 1, 1)
    expected = [x.flatten()[d - shift].item() if 0 <= d - shift < 4 else 0.0 for d in range(4)]
    assert shift_depth(x, shift).flatten().tolist() == expected


def test_a_compiled_block_gives_the_same() -> None:
    torch.manual_seed(0)
    block = ConvBlock(5, 4)
    sources = [torch.randn(2, channels, 3, 6, 5, requires_grad=True) for channels in (2, 3)]
    plain = block(*sources)
    plain.square().sum().backward()
    gradients = [source.grad.clone() for source in sources]
    for source in sources:
        source.grad = None
    compiled = torch.compile(block, backend="aot_eager")(*sources)
    compiled.square().sum().backward()
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    for source, gradient in zip(sources, gradients, strict=True):
        torch.testing.assert_close(source.grad, gradient, rtol=1e-3, atol=1e-4)
