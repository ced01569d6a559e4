"""compact.ckpt at the end of a run: written on request, with the scored weights and the same predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.common.files import read_json
from e2enet.inference.checkpoint import LoadedModel, load_model
from e2enet.inference.config import PredictConfig
from e2enet.inference.run import run_prediction
from e2enet.network.dsff import density
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine.inference import CompactNetwork
from e2enet.system.ranks import Team
from e2enet.training.compact import Origin, find_origin
from e2enet.training.final import score_run
from e2enet.training.parts import read_parts
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from tests.training.conftest import SMALL_RUN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without a compact checkpoint."""
    root = tmp_path_factory.mktemp("compact")
    given = [
        *SMALL_RUN,
        "final.predict=true",
        "final.mirror=false",
        "final.overlay=false",
        "data.num_test=1",
        "network.base_features=8",
        "training.epochs=2",
        "training.steps_per_epoch=3",
        "training.validate_full=0",
        "dsff.update_every=2",
        "trainer.probe=false",
        f"paths.data={root}/data",
        f"paths.prepared={root}/prepared",
        f"run_folder={root}/run",
    ]
    run_training(compose_config(given), root / "run")
    return root / "run"


def test_a_run_writes_it_where_asked(run: Path) -> None:
    best, compact = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "compact.ckpt"
    assert best.is_file() and not compact.exists()
    before = best.read_bytes()
    given = [f"resume={run}", "final.compact=true"]  # of a finished run: steps after training are made up for
    run_training(resumed_config(compose_config(given), given), run)
    assert best.read_bytes() == before
    models = load_model(best), load_model(compact)
    states = [model.network.state_dict() for model in models]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert density(models[1].network) == pytest.approx(0.2, abs=0.01)
    content, step = torch.load(compact, weights_only=True), torch.load(best, weights_only=True)["global_step"]
    assert set(content) == {"hyper_parameters", "state_dict", "packed_from"}
    # The scores of the run say the same.
    assert (
        content["packed_from"] == read_json(run / "summary.json")["checkpoint"] == {"file": "best.ckpt", "step": step}
    )
    assert compact.stat().st_size < best.stat().st_size / 3

    (scans,) = (run.parent / "data").glob("phantom*/imagesTs")
    predictions = []
    for path in (best, compact):
        out = run.parent / path.stem
        assert run_prediction(PredictConfig((path,), scans, out, device="cpu", mirror=False)) == {}
        predictions.append({file.name: np.asarray(nib.load(file).dataobj) for file in out.glob("*.nii.gz")})
    assert len(predictions[0]) == 1 and predictions[0].keys() == predictions[1].keys()
    assert all(np.array_equal(predictions[1][name], array) for name, array in predictions[0].items())


@pytest.mark.parametrize(("engine", "expected"), [("dense", E2ENet), ("sparse", CompactNetwork)])
def test_the_final_prediction_runs_as_the_engine_says(
    engine: str, expected: type, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[LoadedModel] = []

    def predict(models: list[LoadedModel], *_: Any, **__: Any) -> dict[str, str]:
        predicted.extend(models)
        return {}

    monkeypatch.setattr("e2enet.training.final.predict_cases", predict)
    config = compose_config([*SMALL_RUN, f"training.engine={engine}"])
    score_run(
        read_parts(config), run, run / "checkpoints" / "best.ckpt", [], [], Team(rank=1)
    )  # rank 0 would also score
    assert [type(model.network) for model in predicted] == [expected]


def test_without_a_best_checkpoint_the_last_is_packed(run: Path) -> None:
    checkpoints = run / "checkpoints"
    kept = (checkpoints / "best.ckpt").rename(run / "kept.ckpt")
    given = [f"resume={run}", "final.compact=true"]  # no training, so no best checkpoint is written
    try:
        run_training(resumed_config(compose_config(given), given), run)
        states = [load_model(checkpoints / name).network.state_dict() for name in ("compact.ckpt", "last.ckpt")]
        scored = [find_origin(checkpoints / "compact.ckpt"), Origin(**read_json(run / "summary.json")["checkpoint"])]
    finally:
        kept.rename(checkpoints / "best.ckpt")
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert scored[0] == scored[1] == find_origin(checkpoints / "last.ckpt")
