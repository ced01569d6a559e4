"""`e2enet export --to card`: a model card from a run's records, and the weights to share beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.common.files import write_json
from e2enet.export.__main__ import main
from e2enet.inference.checkpoint import load_model
from e2enet.training.compact import Origin, find_origin, write_compact
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
        "checkpoint": {"file": "best.ckpt", "step": 500},
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
    write_config(
        run / "config.yaml", compose_config(["data=msd", "data.name=Task09_Spleen", "seed=7", "training.precision=32"])
    )
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


def scores_of(card: Path) -> str:
    text = (card / "README.md").read_text()
    return text[text.index("## Scores") + len("## Scores") : text.index("## Limits")].strip()


def test_scores_of_fold_all_are_of_training_cases(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = complete(make_run())
    write_config(run / "config.yaml", compose_config(["data=msd", "data.name=Task09_Spleen", "fold=all"]))
    write_json(run / "split.json", {"train": ["a", "b"], "validation": ["a", "b"], "test": []})
    main([str(run), "--to", "card", "--output", str(tmp_path / "card")])
    text, scores = (tmp_path / "card" / "README.md").read_text(), scores_of(tmp_path / "card")
    assert "Task09_Spleen: 2 training cases and none apart for validation (fold all)." in text.splitlines()
    assert scores.splitlines()[0] == (
        "Of the 2 cases that it was trained on, mean (standard deviation) over cases. They do not tell how it segments "
        "other scans, and must not be compared with scores of a fold."
    )
    assert (
        "validation cases" not in text and "slightly optimistic" not in text and "| liver | 0.912 (0.010) |" in scores
    )


def at_step(checkpoint: Path, copy: str, step: int) -> Path:
    """Write a copy of a checkpoint as that of another step of the run."""
    path = checkpoint.with_name(copy)
    torch.save(torch.load(checkpoint, weights_only=True) | {"global_step": step}, path)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_scores_of_other_weights_are_not_in_the_card(
    packed: bool, make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = complete(make_run()) / "checkpoints"
    last = at_step(checkpoints / "best.ckpt", "last.ckpt", 700)
    main([str(write_compact(last) if packed else last), "--to", "card", "--output", str(tmp_path / "card")])
    reason = "the run scored best.ckpt, step 500, and these weights are from last.ckpt, step 700"
    assert scores_of(tmp_path / "card") == f"There are none: {reason}."
    assert f"the card has no scores: {reason}" in " ".join(capsys.readouterr().out.split())
    assert "| weights | from last.ckpt, step 700 |" in (tmp_path / "card" / "README.md").read_text().splitlines()
    assert find_origin(tmp_path / "card" / "compact.ckpt") == Origin("last.ckpt", 700)


def test_a_packed_checkpoint_that_was_scored_has_its_scores(make_run: Callable[..., Path], tmp_path: Path) -> None:
    best = complete(make_run()) / "checkpoints" / "best.ckpt"
    compact = write_compact(write_compact(best, best.with_name("first.ckpt")))
    best.unlink()
    main([str(compact), "--to", "card", "--output", str(tmp_path / "card")])
    assert "| liver | 0.912 (0.010) |" in scores_of(tmp_path / "card")
    assert find_origin(tmp_path / "card" / "compact.ckpt") == Origin("best.ckpt", 500)


def test_the_last_checkpoint_has_the_scores_if_it_was_scored(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """A run that validated no class has no best.ckpt."""
    run = complete(make_run())
    (run / "checkpoints" / "best.ckpt").rename(run / "checkpoints" / "last.ckpt")
    write_json(run / "summary.json", RECORDS["summary.json"] | {"checkpoint": {"file": "last.ckpt", "step": 500}})
    main([str(run / "checkpoints" / "last.ckpt"), "--to", "card", "--output", str(tmp_path / "card")])
    scores = scores_of(tmp_path / "card")
    assert "They are those of last.ckpt, step 500" in scores and "| liver | 0.912 (0.010) |" in scores


def test_runs_and_packed_checkpoints_of_earlier_versions(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """Their summary.json does not name best.ckpt, and their compact.ckpt does not name a checkpoint."""
    run = complete(make_run())
    best = run / "checkpoints" / "best.ckpt"
    write_json(
        run / "summary.json", {key: value for key, value in RECORDS["summary.json"].items() if key != "checkpoint"}
    )
    main([str(run), "--to", "card", "--output", str(tmp_path / "best")])
    assert "| liver | 0.912 (0.010) |" in scores_of(tmp_path / "best")
    content = torch.load(write_compact(best), weights_only=True)
    del content["packed_from"]
    torch.save(content, best.with_name("compact.ckpt"))
    main([str(best.with_name("compact.ckpt")), "--to", "card", "--output", str(tmp_path / "packed")])
    expected = (
        "There are none: the run scored best.ckpt, and these weights are from a checkpoint that the file does not name."
    )
    assert scores_of(tmp_path / "packed") == expected
    assert find_origin(tmp_path / "packed" / "compact.ckpt") is None


@pytest.mark.parametrize("stored", ["best.ckpt", {"file": "best.ckpt"}, {"file": 1, "step": 2}, None])
def test_an_origin_of_another_kind_is_none(stored: Any, make_run: Callable[..., Path]) -> None:
    best = make_run() / "checkpoints" / "best.ckpt"
    torch.save(torch.load(best, weights_only=True) | {"packed_from": stored}, best)
    assert find_origin(best) is None


def test_the_precision_is_the_one_that_auto_meant(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"training": {"precision": "bf16-mixed"}}
    monkeypatch.setattr("e2enet.export.card.read_hyper_parameters", lambda path: own)
    main([str(complete(make_run())), "--to", "card", "--output", str(tmp_path / "card")])
    assert ", seed 7, precision bf16-mixed |" in (tmp_path / "card" / "README.md").read_text()
