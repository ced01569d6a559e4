"""Parity with the authors' released code: outputs, pruned masks and the decay of the prune fraction.

The files in golden/ are the output of that code on CPU in float32 (spec section 7).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from e2enet.network import E2ENet
from e2enet.network.dsff import prune_count, prune_fraction, prune_kernels
from e2enet.network.released import load_released_state_dict

GOLDEN = Path(__file__).parent / "golden"

# The `shift` file has shift_size 5 and `no_dsff_unet` 3, both with a shifted input. The others do not shift, whatever
# their metadata say.
VARIANTS = {
    "shift": {"shift_size": 5, "shift_input": True},
    "no_dsff_unet": {"shift_size": 3, "shift_input": True, "fusion": "unet"},
    "no_shift": {"shift_size": 1},
    "kernel_331": {"kernel_size": (3, 3, 1)},
    "kernel_313": {"kernel_size": (3, 1, 3)},
}


def golden_network(variant: str) -> tuple[E2ENet, dict[str, torch.Tensor]]:
    """Return the network of a golden file with the released weights, and the file's arrays as float32 tensors."""
    with np.load(GOLDEN / f"forward_{variant}.npz") as file:
        meta = json.loads(str(file["meta"]))
        arrays = {name: torch.from_numpy(file[name]).float() for name in file if name != "meta"}
    network = E2ENet(
        meta["in_channels"],
        meta["num_classes"],
        meta["strides"],
        base_features=meta["base_features"],
        max_features=meta["max_features"],
        **VARIANTS[variant],
    )
    state = {name.removeprefix("state."): value for name, value in arrays.items() if name.startswith("state.")}
    load_released_state_dict(network, state)
    return network, arrays


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_reproduces_the_released_code(variant: str) -> None:
    network, arrays = golden_network(variant)
    network.eval()
    network.deep_supervision_in_eval = True
    with torch.no_grad():
        outputs = network(arrays["input"])
    expected = [arrays[name] for name in sorted(arrays) if name.startswith("output_")]
    assert len(outputs) == len(expected)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-4


def test_training_mode_returns_the_same_heads() -> None:
    network, arrays = golden_network("shift")
    outputs = network.train()(arrays["input"])
    for index, ours in enumerate(outputs):
        torch.testing.assert_close(ours, arrays[f"output_{index}"], atol=1e-4, rtol=0)


def test_pruned_masks_equal_the_released_code() -> None:
    with np.load(GOLDEN / "dsff_prune.npz") as file:
        fraction = json.loads(str(file["meta"]))["death_rate"]
        names = [name.removeprefix("mask_before.") for name in file if name.startswith("mask_before.")]
        assert len(names) > 20
        for name in names:
            before = torch.from_numpy(file[f"mask_before.{name}"])
            weight = torch.from_numpy(file[f"weight.{name}"]).float()
            pruned = prune_kernels(weight, before, fraction)
            assert torch.equal(pruned, torch.from_numpy(file[f"mask_pruned.{name}"])), name
            assert prune_count(int(before.sum()), fraction) == int(file[f"num_pruned.{name}"])


def test_prune_fraction_equals_the_released_code() -> None:
    with np.load(GOLDEN / "cosine_decay.npz") as file:
        total = int(file["T_max"])
        ours = [prune_fraction(step, total) for step in range(len(file["death_rate"]))]
        np.testing.assert_allclose(ours, file["death_rate"], atol=1e-9)


def test_released_weights_that_do_not_fit_are_all_named_and_nothing_is_copied() -> None:
    network, arrays = golden_network("shift")
    state = {name.removeprefix("state."): value for name, value in arrays.items() if name.startswith("state.")}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state["extra.weight"] = torch.zeros(1)
    del state["up0.0.weight"]
    state["seg_outputs.0.weight"] = torch.zeros(4, 6, 1, 1, 1)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_released_state_dict(network, {name: value + 1 for name, value in state.items()})
    for part in ("missing: up0.0.weight", "extra.weight", "seg_outputs.0.weight: shape (4, 6, 1, 1, 1)"):
        assert part in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
