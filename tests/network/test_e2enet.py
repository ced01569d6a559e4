"""Shapes, variants, errors and modes of the network for any number of levels."""

from __future__ import annotations

import pytest
import torch

from benchmarks.transcription import PlainE2ENet
from e2enet.common.errors import InputError
from e2enet.network import E2ENet, build_network
from e2enet.network.blocks import ConvBlock
from e2enet.network.dsff import fusion_layers

STRIDES = [(1, 2, 2), (2, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize("levels", [2, 3, 4, 6, 7])
@pytest.mark.parametrize("fusion", ["grid", "unet"])
def test_heads_and_resolutions(levels: int, fusion: str) -> None:
    network = E2ENet(2, 3, [(1, 2, 2)] * (levels - 1), base_features=3, max_features=8, fusion=fusion)
    x = torch.randn(1, 2, 3, 2 ** (levels - 1), 2**levels)
    outputs = network(x)
    heads = max(1, levels - 2) if fusion == "grid" else levels - 1
    assert [tuple(out.shape) for out in outputs] == [
        (1, 3, 3, x.shape[3] >> level, x.shape[4] >> level) for level in range(heads)
    ]
    network.eval()
    torch.testing.assert_close(network(x), outputs[0])
    network.deep_supervision_in_eval = True
    assert len(network(x)) == heads


def test_without_deep_supervision_one_output_and_no_idle_gradients() -> None:
    network = E2ENet(1, 2, STRIDES, base_features=3, deep_supervision=False)
    out = network(torch.randn(1, 1, 4, 8, 8))
    out.sum().backward()
    assert out.shape == (1, 2, 4, 8, 8)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_equals_the_plain_transcription_in_float64_forward_and_backward() -> None:
    torch.manual_seed(0)
    ours = E2ENet(1, 3, STRIDES, base_features=4, max_features=12).double()
    theirs = PlainE2ENet(1, 3, STRIDES, base_features=4, max_features=12).double()
    copy_weights(ours, theirs)
    x = torch.randn(2, 1, 4, 16, 8, dtype=torch.float64)
    for mine, plain in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(mine, plain)
    sum((out**2).sum() for out in ours(x)).backward()
    sum((out**2).sum() for out in theirs(x)).backward()
    torch.testing.assert_close(ours.encoder[0][0].conv.weight.grad, theirs.encoder[0][0].conv.weight.grad)
    torch.testing.assert_close(ours.decoder.columns[0][1].up.weight.grad, theirs.up["1_1"].weight.grad)


def copy_weights(ours: E2ENet, theirs: PlainE2ENet) -> None:
    """Copy our weights to the transcription, whose nodes are named by level_column."""
    state = {}
    for name, value in ours.state_dict().items():
        parts = name.split(".")
        if parts[0] == "decoder":
            if parts[-1] == "kernel_mask":
                continue
            key = f"{parts[3]}_{int(parts[2]) + 1}"
            name = ".".join([{"up": "up", "blocks": "node"}[parts[4]], key, *parts[5:]])
        state[name] = value
    theirs.load_state_dict(state)


def test_sizes_that_do_not_fit_are_told_which_would() -> None:
    network = E2ENet(1, 2, STRIDES, base_features=2)
    with pytest.raises(ValueError, match=r"multiple of \(4, 8, 8\).*\(4, 16, 8\) and \(8, 24, 8\)"):
        network(torch.zeros(1, 1, 5, 20, 8))
    with pytest.raises(ValueError, match=r"expected an input \(B, 1, D, H, W\), got \(1, 2, 4, 8, 8\)"):
        network(torch.zeros(1, 2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"got \(0, 1, 4, 8, 8\); B is at least 1"):
        network(torch.zeros(0, 1, 4, 8, 8))


@pytest.mark.parametrize("batch", [1, 2])
def test_one_voxel_at_the_bottleneck_gives_the_same_on_every_path(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = E2ENet(1, 2, STRIDES, base_features=3)
    x = torch.randn(batch, 1, 4, 8, 8)

    def step() -> list[torch.Tensor]:
        network.zero_grad()
        logits = network(x)
        sum(head.pow(2).sum() for head in logits).backward()
        return [*logits, network.eval()(x), *(p.grad for p in network.train().parameters() if p.grad is not None)]

    loops = step()
    monkeypatch.setattr("e2enet.network.norm.use_compiled_loops", lambda x: False)  # as on other devices
    others = step()
    assert len(loops) == len(others) > 40
    for one, other in zip(loops, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.detach().abs().max()) + 1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": []}, "at least one"),
        ({"strides": [(2, 2)]}, "triple"),
        ({"strides": [(0, 2, 2)]}, "positive"),
        ({"kernel_size": (5, 5, 5)}, "kernel_size must be one of"),
        ({"kernel_size": (3, 3, 3), "shift_size": 3}, "belongs to"),
        ({"inner_kernel_size": (3, 3, 3), "shift_size": 3}, r"\(1, 3, 3\) and \(3, 3, 3\): the depth-shift belongs to"),
        ({"inner_kernel_size": (5, 3, 3)}, "inner_kernel_size must be one of"),
        ({"inner_kernel_size": (1, 3, 3), "fusion": "unet"}, "is of the fusion grid"),
        ({"shift_size": 4}, "odd"),
        ({"fusion": "sum"}, "fusion must be"),
        ({"base_features": 0}, "base_features must be at least 1"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        E2ENet(**({"in_channels": 1, "num_classes": 2, "strides": STRIDES, "base_features": 2} | settings))


def test_default_shift_belongs_to_the_flat_kernel() -> None:
    assert E2ENet(1, 2, STRIDES, base_features=3).encoder[0][1].shift_size == 3
    assert E2ENet(1, 2, STRIDES, base_features=3).encoder[0][0].shift_size == 1  # the input is not shifted
    assert E2ENet(1, 2, STRIDES, base_features=3, shift_input=True).encoder[0][0].shift_size == 3
    assert E2ENet(1, 2, STRIDES, base_features=3, kernel_size=(3, 3, 3)).encoder[1][0].shift_size == 1


def test_inner_kernels_are_those_of_nodes_without_a_head() -> None:
    network = E2ENet(1, 2, STRIDES, base_features=3, kernel_size=(3, 3, 3), inner_kernel_size=(1, 3, 3))
    kernels = {
        (level, column): {block.conv.kernel_size for block in node.blocks}
        for column, nodes in enumerate(network.decoder.columns, start=1)
        for level, node in enumerate(nodes)
    }
    inner, last = {(1, 3, 3)}, {(3, 3, 3)}
    assert kernels == {(0, 1): inner, (1, 1): inner, (2, 1): last, (0, 2): inner, (1, 2): last, (0, 3): last}
    shifts = {module.shift_size for module in network.modules() if isinstance(module, ConvBlock)}
    assert shifts == {1}
    assert {block.conv.kernel_size for stage in network.encoder for block in stage} == last
    assert network.eval()(torch.zeros(1, 1, 4, 8, 8)).shape == (1, 2, 4, 8, 8)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    conv = E2ENet(1, 2, STRIDES, base_features=32).encoder[1][1].conv
    expected = (2 / (1 + 0.01**2) / (64 * 9)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert conv.bias.abs().max() == 0


def test_only_the_grid_is_sparse() -> None:
    names = fusion_layers(E2ENet(1, 2, STRIDES, base_features=3))
    assert all(name.startswith("decoder.columns.") for name in names)
    assert len(names) == 6 + 6 + 3  # six nodes with an up and a block each; three more blocks on the last diagonal
    assert fusion_layers(E2ENet(1, 2, STRIDES, base_features=3, fusion="unet")) == {}


@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_autocast_runs_and_trains(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2enet.network.e2enet.half_precision_pays_on_cpu", lambda: pays)
    torch.manual_seed(0)
    network = E2ENet(1, 2, STRIDES, base_features=4)
    x = torch.randn(1, 1, 4, 16, 16)
    exact = network(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(x)
    assert outputs[0].dtype == (torch.bfloat16 if pays else torch.float32)
    assert (outputs[0].float() - exact).abs().max() < (0.25 if pays else 1e-6)
    sum(out.float().square().sum() for out in outputs).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_build_network_names_what_is_wrong() -> None:
    shape = {"in_channels": 1, "num_classes": 2, "strides": STRIDES}
    assert isinstance(build_network({"name": "e2enet", "base_features": 2}, **shape), E2ENet)
    with pytest.raises(InputError, match="is no network of e2enet"):
        build_network({"name": "os.system"}, **shape)
    with pytest.raises(InputError, match="no settings"):
        build_network({"name": "e2enet", "features": 2}, **shape)
    with pytest.raises(InputError, match="odd"):
        build_network({"name": "e2enet", "shift_size": 2}, **shape)
