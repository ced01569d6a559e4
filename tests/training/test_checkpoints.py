"""best.ckpt follows one score, measured in some epochs; it is never compared with another one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.training.checkpoints import BestCheckpoint, WholeCheckpoints, monitored
from e2enet.training.module import SegmentationModule


class FakeTrainer:
    def __init__(self) -> None:
        self.saved: list[Path] = []

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert not weights_only
        self.saved.append(path)


def saves(callback: BestCheckpoint, epochs: list[dict[str, float]]) -> list[bool]:
    """Whether each epoch, given its scores, writes the checkpoint."""
    module = SegmentationModule.__new__(SegmentationModule)
    found = []
    for scores in epochs:
        object.__setattr__(module, "scores", scores)
        trainer: Any = FakeTrainer()
        callback.on_train_epoch_end(trainer, module)
        found.append(trainer.saved == [callback.path])
    return found


@pytest.mark.parametrize(
    ("validate_full", "score"), [(None, "val/dice"), (0, "val/dice"), (1, "val_full/dice"), (50, "val_full/dice")]
)
def test_whole_cases_choose_where_they_are_validated(validate_full: int | None, score: str) -> None:
    assert monitored(validate_full) == score


def test_only_the_largest_score_of_its_own_kind_counts() -> None:
    callback = BestCheckpoint(Path("best.ckpt"), "val_full/dice")
    epochs = [
        {"val/dice": 0.9},  # of patches: not looked at
        {"val/dice": 0.9, "val_full/dice": 0.5},
        {"val_full/dice": 0.4},
        {},
        {"val_full/dice": math.nan},
        {"val_full/dice": 0.5},
        {"val_full/dice": 0.6},
    ]
    assert saves(callback, epochs) == [False, True, False, False, False, False, True]


def test_a_resumed_run_remembers_its_best() -> None:
    first, second = (BestCheckpoint(Path("best.ckpt"), "val/dice") for _ in range(2))
    assert saves(first, [{"val/dice": 0.7}]) == [True]
    second.load_state_dict(first.state_dict())
    assert saves(second, [{"val/dice": 0.6}, {"val/dice": 0.8}]) == [False, True]


def test_a_checkpoint_that_is_not_written_to_its_end_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, writer = tmp_path / "last.ckpt", WholeCheckpoints()
    writer.save_checkpoint({"epoch": 1}, path)

    def half(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise KeyboardInterrupt

    # Lightning's move from the temporary folder, as it is where that is another file system: a copy.
    monkeypatch.setattr("fsspec.implementations.local.shutil.move", half)
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1} and list(tmp_path.iterdir()) == [path]
