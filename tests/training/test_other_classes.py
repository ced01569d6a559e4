"""Weights of a network with other classes: all but the heads are loaded, with a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.network.build import build_network, head_weights
from e2enet.training.initial_weights import load_initial_weights
from e2enet.training.run import run_training
from tests.integration.test_one_judgement import write
from tests.training.conftest import SMALL_RUN

NETWORK = {"name": "e2enet", "base_features": 4, "max_features": 8}
STRIDES = [[1, 2, 2], [2, 2, 2]]
PLAN: dict[str, Any] = {
    "depth_axis": 2,
    "spacing": [3.0, 1.0, 1.0],
    "patch_size": [4, 8, 8],
    "strides": STRIDES,
    "batch_size": 2,
    "normalisation": [{"scheme": "none"}],
    "median_shape": [4, 10, 8],
}
DENSE = {"enabled": False}


def network_of(classes: int, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(classes)
    return build_network({**NETWORK, **changes}, in_channels=1, num_classes=classes, strides=STRIDES)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with four classes."""
    labels = {number: f"class {number}" for number in range(4)}
    dataset = {"labels": labels, "channels": ["CT"], "mirror_axes": [], "file_ending": ".nii.gz"}
    content = {
        "state_dict": {f"network.{name}": value for name, value in network_of(4).state_dict().items()},
        "hyper_parameters": {"network": NETWORK, "plan": PLAN, "dataset": dataset},
    }
    torch.save(content, tmp_path / "four.ckpt")
    return tmp_path / "four.ckpt"


@pytest.mark.parametrize("name", ["e2enet", "dynunet", "swin_unetr"])
def test_heads_are_what_the_number_of_classes_shapes(name: str) -> None:
    settings = {**NETWORK, "name": name} if name == "e2enet" else {"name": name, "base_features": 12}
    # DynUNet needs three strides. There are as many features as classes, so that the size does not identify a head.
    found = head_weights(settings, in_channels=1, num_classes=4, strides=[*STRIDES, [2, 2, 2]])
    words = {"e2enet": ["heads."], "dynunet": ["output_block.", "heads.", "super_head."], "swin_unetr": ["inner.out."]}
    assert all(any(word in weight for weight in found) for word in words[name])
    assert all(any(word in weight for word in words[name]) for weight in found)


@pytest.mark.parametrize("classes", [3, 7])
def test_all_but_the_heads_is_taken(classes: int, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, source = network_of(classes), network_of(4).state_dict()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_initial_weights(network, checkpoint, DENSE)
    heads = [name for name in before if name.startswith("heads.")]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name in heads else source[name])
    (line,) = " ".join(capsys.readouterr().out.split()).splitlines()
    assert line == (
        f"{checkpoint}: all its weights are taken but those of heads of another shape: {', '.join(heads)}".replace(
            "\n", ""
        )
    )


def test_heads_of_one_shape_are_taken_without_a_word(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = network_of(4)
    torch.nn.init.zeros_(network.get_parameter("heads.0.weight"))
    load_initial_weights(network, checkpoint, DENSE)
    assert torch.equal(network.get_parameter("heads.0.weight"), network_of(4).get_parameter("heads.0.weight"))
    assert capsys.readouterr().out == ""


def test_whatever_else_differs_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="do not fit this run's network") as caught:
        load_initial_weights(network_of(3, base_features=6), checkpoint, DENSE)
    assert "encoder.0.0.conv.weight has shape (4," in str(caught.value) and "heads.1" not in str(caught.value)


def test_pretraining_on_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "TaskTwo", list("abcde"))
    folders = [f"paths.data={tmp_path}", f"paths.prepared={tmp_path}/prepared", f"run_folder={tmp_path}/run"]
    data = ["data=msd", "data.name=TaskTwo", "++data.label_map={2:1}", "augmentation=none"]
    small = [text for text in SMALL_RUN if not text.startswith(("data.", "plan.patch"))] + ["plan.patch_size=[4,16,16]"]
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "dsff=static", "trainer.probe=false"]
    length = ["training.epochs=1", "training.steps_per_epoch=1", "training.validate_full=0", "data.num_workers=0"]
    overrides = [*small, *data, *folders, *still, *length, "pretraining=['data.label_map={2:2}']"]
    run_training(compose_config(overrides), tmp_path / "run")
    assert "all its weights are taken but those of heads of another shape" in " ".join(capsys.readouterr().out.split())
    begun, ended = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "run" / "pretraining", tmp_path / "run")
    )
    assert len(begun["network.heads.0.weight"]) == 3 and len(ended["network.heads.0.weight"]) == 2
    for name, value in begun.items():
        if ".heads." not in name:
            np.testing.assert_allclose(ended[name], value, rtol=0, atol=1e-20)
