"""The flags of `trainer.deterministic`: what a device needs for reproducible bits, and no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.network.e2enet import E2ENet
from e2enet.system.determinism import TorchFlags, set_prediction_flags, set_torch_flags, torch_flags
from e2enet.system.precision import resolve_precision
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.trainer import _dsff


@pytest.fixture(autouse=True)
def flags_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(
        torch.utils.deterministic, "fill_uninitialized_memory", torch.utils.deterministic.fill_uninitialized_memory
    )
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    ("deterministic", "on_gpu", "expected"),
    [
        ("warn", False, TorchFlags(deterministic=False, only_warn=True, benchmark=False, tf32=False)),
        (True, False, TorchFlags(deterministic=True, only_warn=False, benchmark=False, tf32=False)),
        (False, False, TorchFlags(deterministic=False, only_warn=False, benchmark=False, tf32=False)),
        ("warn", True, TorchFlags(deterministic=True, only_warn=True, benchmark=False, tf32=True)),
        (True, True, TorchFlags(deterministic=True, only_warn=False, benchmark=False, tf32=True)),
        (False, True, TorchFlags(deterministic=False, only_warn=False, benchmark=True, tf32=True)),
    ],
)
def test_flags_by_device(deterministic: Any, on_gpu: bool, expected: TorchFlags, monkeypatch: Any) -> None:
    assert torch_flags(deterministic, on_gpu=on_gpu) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    torch.set_float32_matmul_precision("highest")
    for accelerator in ("auto", "gpu"):
        assert set_torch_flags(deterministic, accelerator) == expected
        assert torch.are_deterministic_algorithms_enabled() == expected.deterministic
        assert torch.is_deterministic_algorithms_warn_only_enabled() == expected.only_warn
        assert torch.backends.cudnn.benchmark == expected.benchmark
        assert torch.get_float32_matmul_precision() == ("high" if on_gpu else "highest")
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == (on_gpu and bool(deterministic))
    assert not set_torch_flags("warn", "cpu").deterministic  # a CPU run on a machine with a GPU


@pytest.mark.parametrize(("trainer", "benchmark"), [("cpu", False), ("auto", False), ("gpu", True), ("ddp", True)])
def test_the_presets_of_gpus_benchmark(trainer: str, benchmark: bool) -> None:
    preset = compose_config([f"trainer={trainer}"]).trainer
    on_gpu = preset.accelerator != "cpu"
    assert torch_flags(preset.deterministic, on_gpu=on_gpu).benchmark == benchmark


def test_two_runs_on_a_cpu_give_the_same_bits_without_any_flag() -> None:
    assert not set_torch_flags("warn", "cpu").deterministic
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        network = E2ENet(1, 3, [(1, 2, 2), (2, 2, 2)], base_features=4)
        optimizer = torch.optim.AdamW(network.parameters(), 0.01)
        for _ in range(3):
            loss = sum(head.square().mean() for head in network(torch.randn(2, 1, 8, 16, 16)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    assert torch.equal(*results)


def test_masks_are_drawn_from_the_run_s_seed() -> None:
    def masks(seed: int) -> torch.Tensor:
        (callback,) = _dsff(compose_config([f"seed={seed}", "dsff.density=0.3"]))
        assert isinstance(callback, DSFFCallback) and callback.seed == seed
        network = E2ENet(1, 3, [(1, 2, 2), (2, 2, 2)], base_features=4)
        callback.setup(None, network, "fit")  # type: ignore[arg-type]
        return torch.cat([mask.flatten() for name, mask in network.named_buffers() if name.endswith("kernel_mask")])

    assert torch.equal(masks(7), masks(7)) and not torch.equal(masks(7), masks(8))


@pytest.mark.parametrize(("device", "fast"), [("cpu", False), ("cuda:1", True)])
def test_prediction_measures_algorithms_for_its_windows_on_a_gpu(device: str, fast: bool) -> None:
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    set_prediction_flags(torch.device(device))
    assert torch.backends.cudnn.benchmark == fast
    assert torch.get_float32_matmul_precision() == ("high" if fast else "highest")


@pytest.mark.parametrize(
    ("accelerator", "gpu", "bfloat16", "expected"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("gpu", True, False, "16-mixed"),
        ("cuda", True, True, "bf16-mixed"),
        ("auto", False, True, 32),
        ("cpu", True, True, 32),
        ("mps", False, True, 32),
    ],
)
def test_precision_by_what_the_device_can_do(
    accelerator: str, gpu: bool, bfloat16: bool, expected: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # An older GPU computes in bfloat16 too, but slower than in float32: torch calls that emulation.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation
    )
    assert resolve_precision("auto", accelerator) == expected
    assert resolve_precision("16-mixed", accelerator) == "16-mixed" and resolve_precision(64, accelerator) == 64


def test_the_papers_recipe_keeps_its_precision() -> None:
    assert compose_config(["training=paper"]).training.precision == "16-mixed"
    assert compose_config(["training=small"]).training.precision == "auto"
