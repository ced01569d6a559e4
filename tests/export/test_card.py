"""`e2enet export --to card`: a model card from a run's records, and the weights to share beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.export.__main__ import main
from e2enet.inference.checkpoint import load_model
from e2enet.training.records import write_config

SCORES = {"dice": 0.91234, "nsd": 0.9, "hd95": 2.345}
RECORDS: dict[str, Any] = {
    "summary.json": {
        "n_cases": 2,
        "mean": SCORES,
        "classes": {
            "1": {"name": "liver", **SCORES, "n": 2, "sd": {"dice": 0.01, "nsd": 0.02, "hd95": 0.3}},
            "2": {"name": "spleen", "dice": None, "nsd": None, "hd95": None, "n": 0},
        },
    },
    "cost.json": {"density": 0.3, "exact": {"params": 356309, "flops": 523854848}, "patch_size": [8, 16, 16]},
    "split.json": {"train": ["a", "b", "c"], "validation": ["d", "e"], "test": []},
    "versions.json": {
        "packages": {"e2enet": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6", "monai": "1.6.1", "numpy": "2.4.6"},
        "python": "3.11.7",
        "git": {"commit": "abc", "changed_files": 2},
        "machine": {"processor": "AMD EPYC", "cores": 2, "gpus": []},
    },
}


def complete(run: Path) -> Path:
    """Write what a finished run holds beside its checkpoint."""
    for name, content in RECORDS.items():
        (run / name).write_text(json.dumps(content))
    write_config(run / "config.yaml", compose_config(["data=msd", "data.name=Task09_Spleen", "seed=7"]))
    return run


def test_the_card_says_what_the_run_recorded(make_run: Callable[..., Path], tmp_path: Path) -> None:
    main([str(complete(make_run())), "--to", "card", "--output", str(tmp_path / "card")])
    text = (tmp_path / "card" / "README.md").read_text()
    for line in (
        "# Task09_Spleen: liver, spleen, kidney",
        "| 2 | spleen |",
        "Task09_Spleen: 3 training and 2 validation cases (fold 0).",
        "| network | E2ENet, 3 levels, 0.36 M parameters and 0.524 GFLOP a patch at a density of 0.3 |",
        "| plan | patch 8 x 16 x 16 voxels at 2.5 x 1.2 x 1 mm, slices along the superior-inferior axis |",
        "| recipe | 20 epochs of 25 steps of 2 patches, seed 7, precision 32 |",
        "| code | commit abc, 2 files changed |",
        "| liver | 0.912 (0.010) | 0.900 (0.020) | 2.35 (0.30) | 2 |",
        "| spleen | - | - | - | 0 |",
        "| **mean of classes** | 0.912 | 0.900 | 2.35 | 2 |",
    ):
        assert line in text.splitlines()
    # Nobody but the person who trained it knows these two.
    assert re.findall(r"^(?:Source|Of the weights).*TO BE FILLED IN", text, re.MULTILINE) == [
        "Source, population, scanners and licence of the data: TO BE FILLED IN",
        "Of the weights: TO BE FILLED IN",
    ]


def test_the_weights_beside_it_predict_the_same(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = complete(make_run())
    main([str(run), "--to", "card", "--output", str(tmp_path / "card")])
    x = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    models = [load_model(path).network for path in (run, tmp_path / "card" / "compact.ckpt")]
    with torch.no_grad():
        assert torch.equal(models[0](x), models[1](x))
    assert not (run / "checkpoints" / "compact.ckpt").exists()  # nothing is written into the run


def test_a_run_that_has_not_ended_has_no_card(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = complete(make_run())
    (run / "summary.json").unlink()
    with pytest.raises(SystemExit):
        main([str(run), "--to", "card", "--output", str(tmp_path / "card")])
    assert "summary.json missing; the folder of a run that has ended expected" in capsys.readouterr().err
    assert not (tmp_path / "card").exists()


def test_a_checkpoint_that_was_not_scored_has_no_card(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = complete(make_run()) / "checkpoints"
    shutil.copyfile(checkpoints / "best.ckpt", checkpoints / "last.ckpt")
    with pytest.raises(SystemExit):
        main([str(checkpoints / "last.ckpt"), "--to", "card", "--output", str(tmp_path / "card")])
    assert "last.ckpt: the run's scores are those of best.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "card").exists()
