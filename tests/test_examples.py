"""examples/: the trained models there predict, and their cards name licence, data and scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from e2enet.evaluation.folder import score_folder
from e2enet.inference.checkpoint import load_model
from e2enet.inference.config import PredictConfig
from e2enet.inference.run import run_prediction
from e2enet.network.dsff import density

EXAMPLES = Path(__file__).parents[1] / "examples"
HIPPOCAMPUS = EXAMPLES / "hippocampus"
# Cases of fold 0's validation part, which the model was not trained on.
VALIDATION = ("hippocampus_023", "hippocampus_035")


def test_the_hippocampus_model_is_small_and_sparse() -> None:
    path = HIPPOCAMPUS / "compact.ckpt"
    model = load_model(path)
    assert path.stat().st_size < 2e6 and density(model.network) == pytest.approx(0.3, abs=0.01)
    assert model.labels == {0: "background", 1: "Anterior", 2: "Posterior"} and model.channels == ("MRI",)
    with torch.no_grad():
        assert model.network(torch.zeros(1, 1, *model.plan.patch_size)).isfinite().all()


@pytest.mark.parametrize("card", sorted(EXAMPLES.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_cards_are_filled_in(card: Path) -> None:
    text = card.read_text(encoding="utf-8")
    assert "TO BE FILLED IN" not in text
    for heading in ("Use", "Intended use", "Training data", "Scores", "Limits", "Licence"):
        assert f"\n## {heading}\n" in text
    assert len(list(card.parent.glob("*.ckpt"))) == 1


def test_the_hippocampus_model_segments_scans(shared_data: Path, tmp_path: Path) -> None:
    """Scans that it was not trained on; the card's mean over all of them is 0.88."""
    dataset, scans, labels = shared_data / "Task04_Hippocampus", tmp_path / "scans", tmp_path / "labels"
    for part, folder in (("imagesTr", scans), ("labelsTr", labels)):
        folder.mkdir()
        for case in VALIDATION:
            (folder / f"{case}.nii.gz").symlink_to(dataset / part / f"{case}.nii.gz")
    checkpoint = (HIPPOCAMPUS / "compact.ckpt",)
    assert not run_prediction(PredictConfig(checkpoint, scans, tmp_path / "predictions", mirror=False))  # no failures
    _, summary, _ = score_folder(tmp_path / "predictions", labels, nsd_tolerance=1.0)
    assert summary["mean"]["dice"] > 0.8
