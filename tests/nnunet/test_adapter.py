"""The network class for nnU-Net's plans: E2ENet's own output, nnU-Net's switch, the engine on a CPU."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from e2enet.common.errors import InputError
from e2enet.network import E2ENet
from e2enet.network.dsff import init_masks
from e2enet.network.engine.inference import CompactNetwork
from e2enet.network.nnunet_arguments import ADAPTER
from e2enet.nnunet.adapter import E2ENetAdapter
from e2enet.nnunet.memory import KEPT_PER_COUNTED, feature_map_size, kept_values

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
ARGUMENTS = {"n_stages": 4, "features_per_stage": [6, 12, 24, 48], "strides": STRIDES}


def make_adapter(**options: object) -> E2ENetAdapter:
    torch.manual_seed(0)
    adapter = E2ENetAdapter(input_channels=2, num_classes=3, **ARGUMENTS, **options)  # type: ignore[arg-type]
    init_masks(adapter, 0.3, generator=torch.Generator().manual_seed(1))
    return adapter


def patch() -> Tensor:
    return torch.randn(1, 2, 8, 16, 16, generator=torch.Generator().manual_seed(2))


def test_nnunet_finds_the_class_by_its_name() -> None:
    import pydoc

    assert pydoc.locate(ADAPTER) is E2ENetAdapter


def test_the_output_is_e2enets_bit_for_bit() -> None:
    adapter = make_adapter(engine="dense").eval()
    network = E2ENet(2, 3, STRIDES[1:], base_features=6, max_features=48).eval()
    network.load_state_dict({name.removeprefix("network."): value for name, value in adapter.state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(adapter(patch()), network(patch()))


@pytest.mark.parametrize("training", [True, False])
def test_deep_supervision_is_switched_through_the_decoder(training: bool) -> None:
    adapter = make_adapter(deep_supervision=True).train(training)
    full = (8, 16, 16)
    heads = adapter(patch())
    assert [tuple(head.shape[2:]) for head in heads] == [full, (8, 8, 8)]
    adapter.decoder.deep_supervision = False
    alone = adapter(patch())
    assert torch.equal(alone, heads[0]) and tuple(alone.shape[2:]) == full
    adapter.decoder.deep_supervision = True
    assert len(adapter(patch())) == 2 and adapter.decoder.deep_supervision


def test_the_switch_reaches_an_engine_that_is_in_use() -> None:
    adapter = make_adapter(deep_supervision=True, engine="sparse").eval()
    with torch.inference_mode():
        heads = adapter(patch())
        adapter.decoder.deep_supervision = False
        alone = adapter(patch())
    assert len(heads) == 2 and isinstance(alone, Tensor) and torch.equal(alone, heads[0])
    assert isinstance(adapter._prediction_pass, CompactNetwork)


def test_built_without_deep_supervision_it_returns_one_output() -> None:
    assert isinstance(make_adapter().train()(patch()), Tensor)
    assert not make_adapter().decoder.deep_supervision


def test_predictions_on_a_cpu_multiply_active_kernels_alone() -> None:
    adapter = make_adapter(engine="sparse").eval()
    with torch.inference_mode():
        sparse = adapter(patch())
        masked = adapter.network(patch())
    assert isinstance(adapter._prediction_pass, CompactNetwork)
    assert torch.equal(sparse.argmax(1), masked.argmax(1))
    torch.testing.assert_close(sparse, masked, rtol=1e-4, atol=1e-5)
    assert not torch.equal(masked, torch.zeros_like(masked))
    with torch.no_grad():  # as nnU-Net validates in training: weights change from one time to the next
        assert torch.equal(adapter(patch()), masked)


def test_other_weights_make_another_engine() -> None:
    adapter, other = make_adapter(engine="sparse").eval(), make_adapter(engine="dense").eval()
    with torch.inference_mode():
        first = adapter(patch())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    with torch.inference_mode():
        adapter.load_state_dict(other.state_dict())  # nnU-Net's predictor does so for every fold
        second, expected = adapter(patch()), other(patch())
    assert not torch.allclose(first, second, atol=1e-2)
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-4)


def test_the_engine_is_no_part_of_the_weights() -> None:
    adapter = make_adapter(engine="sparse").eval()
    names = set(adapter.state_dict())
    with torch.inference_mode():
        adapter(patch())
    assert set(adapter.state_dict()) == names and all(name.startswith("network.") for name in names)
    assert any(name.endswith("kernel_mask") for name in names)
    assert len(list(adapter.children())) == 1


def test_training_can_run_by_another_pass() -> None:
    adapter = make_adapter().train()
    adapter.run_training_by(lambda x: x + 1)
    assert torch.equal(adapter(patch()), patch() + 1)
    adapter.eval()
    assert adapter(patch()).shape[1] == 3
    adapter.train().run_training_by(None)
    assert torch.equal(adapter(patch()), adapter.network(patch()))


def test_it_compiles_and_pickles() -> None:
    adapter = make_adapter(deep_supervision=True).train()
    compiled = torch.compile(adapter, backend="eager", fullgraph=True)
    for mine, theirs in zip(adapter(patch()), compiled(patch()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    again = pickle.loads(pickle.dumps(adapter))
    assert torch.equal(again(patch())[0], adapter(patch())[0])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="engine is 'fast': auto, dense, sparse, fused expected"):
        make_adapter(engine="fast")
    with pytest.raises(InputError, match="dropout_op"):
        make_adapter(dropout_op=nn.Dropout3d)


def test_it_imports_without_nnunet_and_without_the_compiler() -> None:
    program = (
        "import sys\n"
        "for name in ('nnunetv2', 'batchgenerators', 'dynamic_network_architectures', 'lightning', 'hydra', 'monai'):\n"
        "    sys.modules[name] = None\n"
        "from e2enet.nnunet.adapter import E2ENetAdapter\n"
        "assert 'numba' not in sys.modules and 'scipy' not in sys.modules\n"
        "print(E2ENetAdapter.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "E2ENetAdapter", done.stderr


def test_kept_values_are_counted_by_hand() -> None:
    chain = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.Sigmoid(), nn.Conv3d(2, 4, 1, bias=False))
    # The input (1 channel) and the sigmoid's output (2 channels, for itself and the next convolution): 3 volumes.
    assert kept_values(chain, (4, 5, 6), in_channels=1) == 3 * 4 * 5 * 6


def test_memory_is_in_the_unit_of_nnunets_planner() -> None:
    """The planner counts 1 / 1.846 of what its own U-Net keeps."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet", reason="nnU-Net's U-Net is missing")
    strides = [(1, 1, 1), *[(2, 2, 2)] * 5]
    norm = (nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True})
    features, count = [32, 64, 128, 256, 320, 320], [2] * 6
    with torch.device("meta"):
        network = unet.PlainConvUNet(
            1, 6, features, nn.Conv3d, 3, strides, count, 16, count[1:], True, *norm, deep_supervision=True
        )
    for size in ((64, 64, 64), (96, 160, 160)):
        counted = network.compute_conv_feature_map_size(size)
        assert kept_values(network, size, in_channels=1) / counted == pytest.approx(KEPT_PER_COUNTED, rel=1e-3)


def test_memory_grows_with_the_patch_and_not_with_the_network_in_use() -> None:
    adapter = make_adapter(deep_supervision=True)
    small, large = (adapter.compute_conv_feature_map_size(size) for size in ((16, 32, 32), (32, 64, 64)))
    assert 7.5 < large / small < 8
    assert adapter.network.encoder[0][0].conv.weight.device.type == "cpu"  # type: ignore[index, union-attr]
    assert feature_map_size(adapter.network, (16, 32, 32)) == small
