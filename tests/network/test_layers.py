"""The fast layers give what torch's own layers give, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import e2enet.network.compiled as compiled
from e2enet.network.blocks import ConvBlock
from e2enet.network.layers import PlaneConv3d, StrideUp3d, line_products
from e2enet.network.norm import InstanceNormAct, batch_norm_act, channel_moments
from e2enet.network.pooling import StrideMaxPool3d
from e2enet.network.shift import whole_size


def same_forward_and_backward(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    theirs.load_state_dict(ours.state_dict())
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(value) for layer, value in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1])
    weights = torch.randn_like(outputs[1])
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_p.grad, theirs_p.grad, msg=name)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 3), (3, 3, 1), (3, 3, 3)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_plane_conv(batch, layout, kernel, stride) -> None:
    torch.manual_seed(0)
    arguments = (3, 4, kernel, stride, tuple(size // 2 for size in kernel))
    x = torch.randn(batch, 3, 5, 6, 8, dtype=torch.float64).contiguous(memory_format=layout)
    same_forward_and_backward(PlaneConv3d(*arguments).double(), nn.Conv3d(*arguments).double(), x)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 3)])
def test_a_normalised_conv_has_no_bias_gradient(kernel) -> None:
    torch.manual_seed(0)
    ours = ConvBlock(3, 4, kernel_size=kernel, shift_size=1).double()
    theirs = nn.Conv3d(3, 4, kernel, padding=tuple(size // 2 for size in kernel)).double()
    theirs.load_state_dict(ours.conv.state_dict())
    x = torch.randn(2, 3, 5, 6, 8, dtype=torch.float64)
    ours(x).pow(3).sum().backward()
    F.leaky_relu(F.instance_norm(theirs(x)), 0.01).pow(3).sum().backward()
    torch.testing.assert_close(ours.conv.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.conv.bias.grad, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(theirs.bias.grad, ours.conv.bias.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 1, 2), (3, 1, 2)])
def test_stride_up(stride, blocks: bool) -> None:
    torch.manual_seed(0)
    ours = StrideUp3d(3, 5, stride, blocks=blocks).double()
    if blocks:
        ours.register_forward_hook(lambda layer, args, out: out.reshape(2, 5, *whole_size(out)))
    theirs = nn.ConvTranspose3d(3, 5, stride, stride, bias=False).double()
    same_forward_and_backward(ours, theirs, torch.randn(2, 3, 3, 2, 4, dtype=torch.float64))


def test_line_products_are_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((7, 3), (4, 3, 5))]
    assert torch.autograd.gradcheck(line_products, tensors)
    expected = torch.einsum("nc,kcm->knm", *tensors)
    torch.testing.assert_close(line_products(*tensors), expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the path of other devices
    torch.testing.assert_close(line_products(*tensors), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("size", [(4, 6, 8), (5, 7, 9)])  # windows do not cover the second fully
def test_max_pool_beside_its_input_equals_torch(layout, size) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 3, (2, 3, *size)).double().contiguous(memory_format=layout)  # few values: many ties
    same_forward_and_backward(_Beside(StrideMaxPool3d((2, 3, 2))), _Beside(nn.MaxPool3d((2, 3, 2))), x)


@pytest.mark.parametrize("stride", [(3, 5, 17), (4, 8, 8), (1, 16, 17), (4, 8, 16)])  # 255, 256, 272, 512 voxels
def test_windows_of_more_voxels_than_a_byte_can_number(stride) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *stride, dtype=torch.float64).repeat(1, 1, 1, 1, 2)
    x[0, 0, -1, -1, -1] = 9  # the last voxel of a window
    same_forward_and_backward(_Beside(StrideMaxPool3d(stride)), _Beside(nn.MaxPool3d(stride)), x)


class _Beside(nn.Module):
    """Combine the input and the pooled volume with different weights in one tensor."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        kept, pooled = self.pool(x) if isinstance(self.pool, StrideMaxPool3d) else (x, self.pool(x))
        return torch.cat([(2 * kept).flatten(), (3 * pooled).flatten()])


def test_the_largest_of_nan_is_nan() -> None:
    x = torch.zeros(1, 1, 2, 2, 4)
    x[0, 0, 1, 0, 3] = torch.nan
    pooled = StrideMaxPool3d((2, 2, 2))(x)[1].flatten()
    assert pooled[0] == 0 and pooled[1].isnan()


@pytest.mark.parametrize("block", [7, 50, 10**6])
@pytest.mark.parametrize("batch", [1, 3])
def test_norm_act_equals_torch(block: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "VALUES_PER_PART", block)
    torch.manual_seed(1)
    ours = InstanceNormAct(4).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs = nn.InstanceNorm3d(4, affine=True).double()
    x = torch.randn(batch, 4, 3, 5, 4, dtype=torch.float64) * 3 + 2
    same_forward_and_backward(ours, _Then(theirs), x)


class _Then(nn.Module):
    """torch's instance norm followed by LeakyReLU, with the same parameter names as `InstanceNormAct`."""

    def __init__(self, inner: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias = inner.weight, inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, 1e-5), 0.01)


def test_gradcheck_of_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "VALUES_PER_PART", 40)
    torch.manual_seed(0)
    layer = InstanceNormAct(3).double()
    x = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda *tensors: torch.func.functional_call(layer, {"weight": tensors[1], "bias": tensors[2]}, tensors[0]),
        (x, weight, bias),
    )


def test_threads_change_no_bit_of_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "VALUES_PER_PART", 100)
    torch.manual_seed(0)
    x, layer, threads = torch.randn(2, 5, 4, 6, 6), InstanceNormAct(5), torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        source = x.clone().requires_grad_()
        out = layer(source)
        found.append([out, *torch.autograd.grad((out * x).sum(), [source, layer.weight, layer.bias])])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_nothing_finite_comes_of_nan() -> None:
    x = torch.randn(1, 2, 3, 4, 4)
    x[0, 1, 2, 3, 3] = torch.nan
    out = InstanceNormAct(2)(x)
    assert out[0, 0].isfinite().all() and out[0, 1].isnan().all()


def test_the_path_of_other_devices_gives_the_same() -> None:
    torch.manual_seed(0)
    layer = InstanceNormAct(4)
    x = torch.randn(2, 4, 3, 5, 4)
    torch.testing.assert_close(batch_norm_act(x, layer.weight, layer.bias, 1e-5, 0.01), layer(x))


@pytest.mark.parametrize("path", ["loops", "torch"])
def test_the_norm_of_one_voxel_is_its_bias(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "torch":
        monkeypatch.setattr("e2enet.network.norm.use_compiled_loops", lambda x: False)
    layer, x = InstanceNormAct(2), torch.randn(3, 2, 1, 1, 1, requires_grad=True)
    layer.bias.data.copy_(torch.tensor([0.5, -2.0]))
    out = layer(x)
    assert torch.equal(out, torch.tensor([0.5, -0.02]).view(1, 2, 1, 1, 1).expand(3, 2, 1, 1, 1))
    out.sum().backward()
    for grad in (x.grad, layer.weight.grad):
        assert grad is not None and float(grad.abs().max()) < 1e-7
    torch.testing.assert_close(layer.bias.grad, torch.tensor([3.0, 0.03]))
    assert layer(torch.tensor([torch.nan, 1.0]).view(1, 2, 1, 1, 1)).isnan().flatten().tolist() == [True, False]


def test_moments_of_large_volumes_keep_their_digits() -> None:
    torch.manual_seed(0)
    rows = torch.randn(400_000, 4) * 0.1 + 30  # the mean is 300 times the deviation
    mean, variance = map(torch.from_numpy, channel_moments(rows.numpy()))
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance, rows.double().var(0, unbiased=False), rtol=1e-5, atol=0)


def test_statistics_are_float32_for_bfloat16() -> None:
    torch.manual_seed(0)
    layer = InstanceNormAct(4)
    x = (torch.randn(1, 4, 8, 16, 16) + 4).bfloat16()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x.float()), atol=2e-2, rtol=1e-2)
