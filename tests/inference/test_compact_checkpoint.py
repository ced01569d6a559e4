"""compact.ckpt gives the same network and predictions as the checkpoint it was made from, and is smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.inference.checkpoint import LoadedModel, load_ensemble, load_model, read_hyper_parameters
from e2enet.inference.config import PredictConfig
from e2enet.inference.run import run_prediction
from e2enet.network.build import build_network
from e2enet.network.dsff import fusion_layers, init_masks, set_group_size
from e2enet.training.compact import write_compact

Write = Callable[..., Path]
PREFIXES = ("network.", "network._orig_mod.")


def trained(
    network: dict[str, Any], group_size: int = 1, density: float | None = 0.2, prefix: str = PREFIXES[0]
) -> Any:
    """Return an edit of a checkpoint: another network, drawn masks, and the optimizer state that resuming needs."""

    def edit(content: dict[str, Any]) -> None:
        settings = content["hyper_parameters"]
        settings["network"], settings["group_size"] = settings["network"] | network, group_size
        torch.manual_seed(0)
        built = build_network(settings["network"], in_channels=1, num_classes=3, strides=settings["plan"]["strides"])
        set_group_size(built, group_size)
        if density is not None:
            init_masks(built, density, generator=torch.Generator().manual_seed(1))
        content["state_dict"] = {f"{prefix}{name}": value for name, value in built.state_dict().items()}
        moments = ([torch.ones_like(value) for value in built.parameters()] for _ in range(2))
        content["optimizer_states"] = [dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))]
        content["state_dict"]["loss.weight"] = torch.ones(3)

    return edit


VARIANTS = {
    "grid": trained({}),
    "dense": trained({}, density=None),
    "groups": trained({"base_features": 8}, group_size=8, density=0.3),
    "unet": trained({"fusion": "unet"}, density=None),
    "compiled": trained({}, prefix=PREFIXES[1]),
}


def equal(ours: LoadedModel, theirs: LoadedModel) -> bool:
    states = ours.network.state_dict(), theirs.network.state_dict()
    return states[0].keys() == states[1].keys() and all(
        value.dtype == states[1][name].dtype and torch.equal(value, states[1][name])
        for name, value in states[0].items()
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_gives_the_same_model(variant: str, write_checkpoint: Write, tmp_path: Path) -> None:
    best = write_checkpoint("run/checkpoints/best.ckpt", edit=VARIANTS[variant])
    compact = write_compact(best)
    assert compact == best.with_name("compact.ckpt") and len(list(best.parent.iterdir())) == 2
    ours, theirs = load_model(compact), load_model(best)
    assert equal(ours, theirs) and not ours.network.training
    assert equal(load_model(write_compact(compact, tmp_path / "again.ckpt")), theirs)
    assert (ours.plan, ours.labels, ours.channels) == (theirs.plan, theirs.labels, theirs.channels)
    sizes = [{layer.group_size for layer in fusion_layers(model.network).values()} for model in (ours, theirs)]
    assert sizes[0] == sizes[1] and (sizes[0] == {8}) == (variant == "groups")
    assert read_hyper_parameters(compact) == read_hyper_parameters(best)
    assert len(load_ensemble([best, compact])) == 2


def test_it_holds_what_prediction_needs_and_no_more(write_checkpoint: Write) -> None:
    best = write_checkpoint(edit=trained({"base_features": 16, "max_features": 64}))
    compact = write_compact(best)
    content = torch.load(compact, weights_only=True)
    assert set(content) == {"hyper_parameters", "state_dict"}
    network = load_model(best).network
    layers = fusion_layers(network)
    dense = sum(value.numel() for value in network.parameters()) - sum(
        layer.weight.numel() for layer in layers.values()
    )
    active = sum(int(layer.kernel_mask.sum()) * layer.weight.shape[2:].numel() for layer in layers.values())
    masks = sum(layer.kernel_mask.numel() for layer in layers.values())
    expected = 4 * (dense + active) + masks  # bytes: float32 weights, bool masks
    tensors = content["state_dict"].values()
    assert sum(value.untyped_storage().nbytes() for value in tensors) == expected
    # Names, shapes and padding take at most 512 bytes per tensor.
    assert expected < compact.stat().st_size < expected + 512 * len(tensors) + 8192
    assert compact.stat().st_size < best.stat().st_size / 4


def test_predictions_are_the_same_bit_for_bit(write_checkpoint: Write, scan: nib.Nifti1Image, tmp_path: Path) -> None:
    best = write_checkpoint(edit=VARIANTS["grid"])
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(scan, scans / "a.nii.gz")
    found = []
    for path in (best, write_compact(best)):
        out = tmp_path / path.stem
        assert run_prediction(PredictConfig((path,), scans, out, device="cpu", probabilities=True)) == {}
        with np.load(out / "a.npz") as stored:
            found.append([np.asarray(nib.load(out / "a.nii.gz").dataobj), *(stored[name] for name in stored.files)])
    assert len(found[0]) >= 2 and len(np.unique(found[0][0])) > 1
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
