"""Resuming from an earlier checkpoint than the last: later results are set aside in a run folder of their own.

RUN/set_aside/from_step_N holds config.yaml, metrics.csv, all checkpoints, predictions and scores as they were, and can
itself be resumed. The run's own folder is then that of a run that has just reached the chosen checkpoint.

A prolonged run's scores are set aside too: RUN/set_aside/scores_of_step_N.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path
from e2enet.runs.folders import CONFIG_FILE, COST_FILE, SUMMARY_FILE
from e2enet.training.loggers import IDS_FILE, METRICS_FILE
from e2enet.training.resume import LAST_CHECKPOINT, FoundCheckpoint, read_state
from e2enet.training.run_folder import VERSIONS_FILE, make_free

FOLDER = "set_aside"
COPIED = (CONFIG_FILE, VERSIONS_FILE, METRICS_FILE, COST_FILE)  # the run continues or rewrites them
SCORES = (SUMMARY_FILE, "scores.csv", "validation", "test")
TEST_SCORES = (f"test/{SUMMARY_FILE}", "test/scores.csv")
MOVED = (IDS_FILE, "connections.json", *SCORES)  # of its earlier end


def later_checkpoints(run_folder: Path, chosen: FoundCheckpoint) -> list[Path]:
    """Return the checkpoints of a run that are later than the chosen one, unreadable ones included."""
    others = sorted(path for path in (run_folder / LAST_CHECKPOINT).parent.glob("*.ckpt") if path != chosen.path)
    return [path for path in others if _is_later(path, chosen.state.step)]


def make_way(
    run_folder: Path, checkpoint: FoundCheckpoint, later: Sequence[Path], *, length: int, predict: bool
) -> None:
    """Clear a run folder of what will not be of the resumed run.

    Args:
        run_folder: Of the run.
        checkpoint: From which it is resumed.
        later: Checkpoints after that one, if it was chosen.
        length: Of the run, in steps.
        predict: Whether the run predicts at its end.
    """
    if later:
        set_aside(run_folder, checkpoint, later)
    elif checkpoint.state.step < length:
        set_scores_aside(run_folder, checkpoint.state.step)
    elif predict:
        remove_scores(run_folder)


def set_aside(run_folder: Path, chosen: FoundCheckpoint, later: Sequence[Path]) -> None:
    """Set aside what came after a checkpoint, and make it the run's last one.

    Nothing is lost if this is killed: the run's own files change only after the copies are complete.
    """
    place = make_free(run_folder / FOLDER / f"from_step_{chosen.state.step}")
    for path in sorted((run_folder / LAST_CHECKPOINT).parent.glob("*.ckpt")):
        _link(path, place / "checkpoints" / path.name)
    for name in COPIED:
        if (run_folder / name).is_file():
            with atomic_path(place / name) as temporary:
                shutil.copyfile(run_folder / name, temporary)
    last = run_folder / LAST_CHECKPOINT
    with atomic_path(last) as temporary:
        shutil.copyfile(chosen.path, temporary)
    for path in later:
        if path != last:
            path.unlink()
    for name in MOVED:
        if (run_folder / name).exists():
            os.replace(run_folder / name, place / name)
    say(f"going on from {chosen.path}, step {chosen.state.step}: what came after it is in {place}")


def set_scores_aside(run_folder: Path, step: int) -> None:
    """Set aside the scores of a run that ended at a step and is now prolonged: a report would take them for its own."""
    if not (run_folder / SUMMARY_FILE).is_file():
        return
    place = make_free(run_folder / FOLDER / f"scores_of_step_{step}")
    for name in SCORES:  # first the summary, by which the run counts as finished
        if (run_folder / name).exists():
            os.replace(run_folder / name, place / name)
    say(f"training goes on after step {step}: its scores are in {place}")


def remove_scores(run_folder: Path) -> None:
    """Remove the scores of a finished run that is going to predict again: its config may no longer be theirs."""
    for name in (SUMMARY_FILE, "scores.csv", *TEST_SCORES):  # first the summary, by which the run counts as finished
        (run_folder / name).unlink(missing_ok=True)


def _is_later(path: Path, step: int) -> bool:
    try:
        return read_state(path).step > step
    except InputError:
        return True  # damaged, or compact.ckpt, which is made from the best one at the end


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, which takes no space; copy it if the file system has no hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
