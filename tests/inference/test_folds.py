"""Runs of a sweep that form an ensemble: one configuration, every fold, finished. Otherwise an error says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from e2enet.common.errors import InputError
from e2enet.inference.folds import RunSelector, find_folds, is_sweep

Write = Callable[..., Path]
Line = dict[str, Any]


def line(row: str | None = None, fold: int | str = 0, seed: int = 0, *more: str, experiment: str | None = None) -> Line:
    """Return a line of the manifest. Jobs with the same settings share a key."""
    folder = f"{row or 'run'}-fold{fold}-seed{seed}{''.join(more)}"
    overrides = [f"fold={fold}", f"seed={seed}", *more, *([f"row={row}"] if row else [])]
    key = f"{row}{fold}{seed}{more}"
    return {
        **{"key": key, "folder": folder, "experiment": experiment, "row": row, "fold": fold, "seed": seed},
        **{"data": "phantom", "overrides": overrides},
    }


@pytest.fixture
def write_sweep(tmp_path: Path) -> Write:
    """Return a function that writes a sweep folder of finished jobs; `states` gives other states by folder.

    The config of a job is `config` with its overrides, plus the override that `added` holds for its folder.
    """

    def write(
        lines: Sequence[Line],
        states: dict[str, str] | None = None,
        config: str = "data: {name: phantom}",
        added: dict[str, str] | None = None,
    ) -> Path:
        folder = tmp_path / "sweep"
        folder.mkdir()
        content = {"version": 1, "name": "sweep", "ablations": {}, "jobs": list(lines)}
        (folder / "sweep.json").write_text(json.dumps(content))
        for entry in lines:
            state = (states or {}).get(entry["folder"], "finished")
            if state == "pending":
                continue
            run = folder / entry["folder"]
            run.mkdir(exist_ok=True)
            more = [*entry["overrides"], *filter(None, [(added or {}).get(entry["folder"])])]
            OmegaConf.save(OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(more)), run / "config.yaml")
            job = {"state": state, "started": "2025-01-01T00:00:00+00:00", "seconds": 1.0, "attempts": 1}
            (run / "job.json").write_text(json.dumps(job))
        return folder

    return write


def five(row: str | None = None, seed: int = 0, *more: str, experiment: str | None = None) -> list[Line]:
    return [line(row, fold, seed, *more, experiment=experiment) for fold in range(5)]


def names(folder: Path, choice: RunSelector | None = None, **options: bool) -> list[str]:
    return [run.name for run in find_folds(folder, choice, **options).folders]


def test_one_configuration_needs_no_choice(write_sweep: Write) -> None:
    # Runs come in the order of folds, whatever the order of the manifest.
    folder = write_sweep(five("s80")[::-1])
    assert names(folder) == [f"s80-fold{fold}-seed0" for fold in range(5)]
    assert find_folds(folder).configuration.folder_name == "s80-seed0"


def test_rows_and_seeds_must_be_chosen(write_sweep: Write) -> None:
    folder = write_sweep([*five("s90"), *five("s80"), *five("s80", 1)])
    with pytest.raises(InputError) as caught:
        find_folds(folder)
    message = str(caught.value)
    assert "3 configurations fit" in message
    for expected in ("row=s90 seed=0", "row=s80 seed=0", "row=s80 seed=1"):
        assert f"  - {expected}\n" in f"{message}\n"
    assert names(folder, RunSelector(row="s90"))[0] == "s90-fold0-seed0"
    with pytest.raises(InputError, match="2 configurations fit row=s80") as caught:
        find_folds(folder, RunSelector(row="s80"))
    assert "s90" not in str(caught.value)
    assert names(folder, RunSelector(row="s80", seed=1))[4] == "s80-fold4-seed1"
    with pytest.raises(InputError, match=r"no configuration fits row=s70 seed=0;(.|\n)*row=s90 seed=0"):
        find_folds(folder, RunSelector(row="s70", seed=0))


def test_all_seeds_may_be_averaged(write_sweep: Write) -> None:
    folder = write_sweep([*five("s80"), *five("s80", 1)], {"s80-fold3-seed1": "crashed"})
    both = RunSelector(seed="all")
    with pytest.raises(InputError, match=r"fold 3, seed 1: crashed"):
        find_folds(folder, both)
    found = names(folder, both, allow_missing=True)
    assert len(found) == 9 and "s80-fold3-seed0" in found and "s80-fold3-seed1" not in found


def test_missing_and_unfinished_folds_are_named(write_sweep: Write) -> None:
    lines = five("s80")[:4]
    states = {"s80-fold1-seed0": "interrupted", "s80-fold2-seed0": "pending", "s80-fold3-seed0": "running"}
    folder = write_sweep(lines, states)  # no process holds the lock of fold 3: it was killed
    with pytest.raises(InputError) as caught:
        find_folds(folder)
    message = str(caught.value)
    assert "row=s80 seed=0 are missing (allow_missing_folds" in message
    for expected in ("fold 1, seed 0: interrupted", "fold 2, seed 0: pending", "fold 3, seed 0: interrupted"):
        assert expected in message
    assert "fold 4, seed 0: not in the sweep" in message and "fold 0" not in message
    found = find_folds(folder, allow_missing=True)
    assert [run.name for run in found.folders] == ["s80-fold0-seed0"] and len(found.left_out) == 4


def test_without_any_finished_fold_there_is_no_ensemble(write_sweep: Write) -> None:
    folder = write_sweep([line("s80")], {"s80-fold0-seed0": "crashed"})
    with pytest.raises(InputError, match=r"none is left\):\n  - fold 0, seed 0: crashed"):
        find_folds(folder, allow_missing=True)


def test_a_single_split_has_one_fold_and_fold_all_is_none_of_the_five(write_sweep: Write) -> None:
    folder = write_sweep([line("ct"), line("ct", "all")], config="data: {split: official}")
    with pytest.raises(InputError, match=r"row='ct \(fold=all\)' seed=0"):
        find_folds(folder, RunSelector(row="ct"))
    assert names(folder, RunSelector(row="ct (fold=all)")) == ["ct-foldall-seed0"]


def test_settings_stand_in_for_rows(write_sweep: Write) -> None:
    sparse, dense = five(None, 0, "dsff.density=0.1"), five(None, 0, "dsff.density=0.5")
    elsewhere = {**sparse[4], "overrides": [*sparse[4]["overrides"], "paths.data=/other", "trainer.accelerator=gpu"]}
    folder = write_sweep([*sparse[:4], elsewhere, *dense])
    with pytest.raises(InputError, match=r"row='dsff\.density=0\.1' seed=0\n  - row='dsff\.density=0\.5' seed=0"):
        find_folds(folder)
    found = find_folds(folder, RunSelector(row="dsff.density=0.5"))
    assert found.folders[0].name.endswith("dsff.density=0.5")
    assert found.configuration.folder_name == "dsff.density=0.5-seed0"


def test_a_default_spelled_out_makes_no_other_configuration(write_sweep: Write) -> None:
    first, second = five("s80")[:3], five("s80", 0, "data.name=phantom")[3:]
    folder = write_sweep([*first, *second])
    found = find_folds(folder)
    assert [job.fold for job in found.jobs] == [0, 1, 2, 3, 4]
    assert (found.configuration.row, found.configuration.folder_name) == ("s80", "s80-seed0")
    # A job that has not begun has no config, so only the overrides are compared.
    (folder / second[1]["folder"] / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"2 configurations fit; (.|\n)*row='s80 \(data\.name=phantom\)' seed=0"):
        find_folds(folder)


def test_jobs_of_the_same_overrides_and_other_configs_are_two_configurations(write_sweep: Write) -> None:
    old, new = (
        five("s80"),
        [{**entry, "key": f"{entry['key']}x", "folder": f"{entry['folder']}x"} for entry in five("s80")],
    )
    added = {entry["folder"]: f"training.epochs={9 if entry in new else 7}" for entry in (*old, *new)}
    folder = write_sweep([*old, *new], added=added)
    with pytest.raises(InputError, match=r"2 configurations fit") as caught:
        find_folds(folder)
    for epochs in (7, 9):
        assert f"row='s80 (training.epochs={epochs})' seed=0" in str(caught.value)
    assert names(folder, RunSelector(row="s80 (training.epochs=9)")) == [entry["folder"] for entry in new]


def test_a_job_of_two_experiments_is_one_configuration(write_sweep: Write) -> None:
    lines = [*five("s80", experiment="sparsity"), *five("s80", experiment="mechanisms")]
    folder = write_sweep(lines)
    assert len(names(folder)) == 5
    assert find_folds(folder, RunSelector(experiment="mechanisms")).configuration.experiment == "mechanisms"


def test_rows_of_one_name_in_two_experiments(write_sweep: Write) -> None:
    other = [{**entry, "key": f"{entry['key']}x", "experiment": "width"} for entry in five("ours")]
    folder = write_sweep([*five("ours", experiment="sparsity"), *other])
    with pytest.raises(InputError, match="experiment=sparsity row=ours seed=0"):
        find_folds(folder, RunSelector(row="ours"))
    assert len(names(folder, RunSelector(row="ours", experiment="width"))) == 5


def test_runs_without_a_sweep(tmp_path: Path) -> None:
    for fold in range(5):
        run = tmp_path / "runs" / f"run{fold}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"{{fold: {fold}, seed: 0, run_folder: {run}, dsff: {{density: 0.2}}}}")
        (run / "summary.json").write_text("{}")
    assert names(tmp_path / "runs") == [f"run{fold}" for fold in range(5)]
    assert is_sweep(tmp_path / "runs") and not is_sweep(tmp_path / "runs" / "run0") and not is_sweep(tmp_path)
    (tmp_path / "runs" / "run5").mkdir()
    (tmp_path / "runs" / "run5" / "config.yaml").write_text("{fold: 0, seed: 0, dsff: {density: 0.5}}")
    with pytest.raises(InputError, match=r"row='dsff\.density=0\.2' seed=0\n  - row='dsff\.density=0\.5' seed=0"):
        find_folds(tmp_path / "runs")


def test_repeated_runs_of_a_fold_count_once(tmp_path: Path) -> None:
    runs = [(fold, f"10-{fold}", True) for fold in range(5)]
    # Fold 1 has an earlier interrupted run. Fold 2 was trained again on a GPU. The last run of fold 3 is not finished.
    runs += [(1, "09-1", False), (2, "11-2", True), (3, "11-3", False), (3, "09-3", True)]
    for fold, time, finished in runs:
        run = tmp_path / time
        run.mkdir()
        device = "gpu" if time == "11-2" else "cpu"
        (run / "config.yaml").write_text(f"{{fold: {fold}, seed: 0, trainer: {{accelerator: {device}}}}}")
        if finished:
            (run / "summary.json").write_text("{}")
    assert names(tmp_path) == ["10-0", "10-1", "11-2", "10-3", "10-4"]
    (tmp_path / "10-1" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"fold 1, seed 0: interrupted \(.*10-1\)") as caught:
        find_folds(tmp_path)
    assert "09-1" not in str(caught.value)
    assert find_folds(tmp_path, allow_missing=True).left_out == (f"fold 1, seed 0: interrupted ({tmp_path / '10-1'})",)
