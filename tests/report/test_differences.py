"""Differences from full scale are read from the runs' configs; scores are compared on the same dataset only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.configs import as_plain, compose_config
from e2enet.report.results.runs import Runs, load_runs
from e2enet.report.tables.differences import (
    dataset_name,
    dataset_names,
    published_differences,
    published_range,
    setting_differences,
    with_names_of_today,
)
from tests.report.conftest import FakeJob, write_sweep

ROWS = {
    "s90": {"label": "S = 0.9", "overrides": ["dsff.density=0.1"], "published": {"dice": 89.6}},
    "s80": {"label": "S = 0.8", "overrides": ["dsff.density=0.2"], "published": {"dice": "90.1-90.2"}},
}
ABLATION: dict[str, Any] = {"title": "Sparsity", "published_on": "AMOS-CT", "setting": {"patch_size": [128] * 3}}


def make(tmp_path: Path, *overrides: str) -> Runs:
    """Write two seeds of one row and one seed of another, at a small scale."""
    given = ("experiments=sparsity", "training=small", *overrides)
    jobs = (FakeJob("s90", 0, overrides=given, density=0.1), FakeJob("s90", 1, overrides=given, density=0.1))
    ablation = {**ABLATION, "rows": ROWS}
    folder = write_sweep(tmp_path / "sweep", (*jobs, FakeJob("s80", 0, overrides=given)), {"sparsity": ablation})
    return load_runs(folder)


def line(row: str, dice: float, low: float, high: float, data: str = "BraTS") -> dict[str, Any]:
    published = ROWS[row]["published"]["dice"]  # type: ignore[index]
    label = ROWS[row]["label"]
    return {
        **{"row": row, "label": label, "published_dice": published, "published_on": "BraTS", "data": data},
        **{"dice": dice, "dice_low": low, "dice_high": high},
    }


def test_settings_that_differ_from_the_experiment(tmp_path: Path) -> None:
    table = setting_differences(make(tmp_path, "data=msd", "data.name=Task04_Hippocampus"), "sparsity")
    found = {entry["setting"]: (entry["full"], entry["obtained"]) for entry in table.lines}
    assert list(found)[:2] == ["dataset", "patch size"]
    assert found["dataset"] == ("AMOS-CT", "Task04_Hippocampus")
    assert found["patch size"] == ("[128, 128, 128]", "[16, 32, 32]")
    assert found["width (channels at full resolution)"] == ("48", "16")
    assert found["epochs"] == ("1000", "4") and found["steps per epoch"] == ("250", "25")
    assert found["batch size"] == ("2", "4")
    assert found["optimizer._target_"] == ("torch.optim.SGD", "torch.optim.AdamW")
    assert "folds" not in found and found["seeds"] == ("0", "0, 1")
    # A row's own settings are equal on both sides, and paths do not count.
    assert not [name for name in found if name.startswith(("dsff.density", "paths", "data."))]
    assert table.notes == ()


def test_an_experiment_that_is_gone_is_said(tmp_path: Path) -> None:
    runs = make(tmp_path)
    renamed = Runs(
        runs.folder, runs.name, {"gone": runs.ablations["sparsity"]}, runs.jobs, runs.cases, runs.configs, {}
    )
    renamed.jobs["experiment"] = "gone"
    table = setting_differences(renamed, "gone")
    assert table.lines == ()
    assert len(table.notes) == 2 and "gone, s90: its full scale cannot be composed" in table.notes[0]


@pytest.mark.parametrize(
    ("row", "dice", "low", "high", "difference", "inside"),
    [
        ("s90", 89.0, 88.0, 90.0, "-0.60", "yes"),
        ("s90", 91.0, 90.0, 92.0, "+1.40", "no"),
        ("s80", 90.0, 89.0, 90.5, "-0.20 to -0.10", "yes"),
        ("s80", 90.0, 89.0, 90.15, "-0.20 to -0.10", "partly"),
        ("s80", 90.15, 90.14, 90.16, "-0.05 to +0.05", "partly"),
        ("s80", 88.0, 87.0, 89.0, "-2.20 to -2.10", "no"),
    ],
)
def test_published_against_obtained(
    row: str, dice: float, low: float, high: float, difference: str, inside: str
) -> None:
    table = published_differences([line(row, dice, low, high), line("s80", math.nan, 0, 0)])
    assert [(entry["difference"], entry["inside"]) for entry in table.lines] == [(difference, inside)]


def test_other_datasets_are_not_compared() -> None:
    table = published_differences([line("s90", 89.0, 88.0, 90.0, "Task04_Hippocampus")])
    assert table.lines == () and table.notes == ("Published for BraTS, obtained on other data: not compared.",)


def test_a_job_not_begun_is_called_as_the_others_of_its_data(tmp_path: Path) -> None:
    runs = make(tmp_path, "data=amos_mri")
    jobs = runs.jobs.assign(data=["amos22", "amos22", "BTCV"])
    del runs.configs[jobs["key"][1]], runs.configs[jobs["key"][2]]  # type: ignore[attr-defined]
    assert dataset_names(runs, jobs) == ["AMOS-MRI", "AMOS-MRI", "BTCV"]


@pytest.mark.parametrize(
    ("experiment", "folds", "seeds", "expected"),
    [
        ("folds", (0, 1, 2, 3, 4), (0,), {}),
        ("folds", (0, 1), (0,), {"folds": ("0, 1, 2, 3, 4", "0, 1")}),
        ("seeds", (0,), (0, 1, 2), {}),
        ("seeds", (1,), (0,), {"folds": ("0", "1"), "seeds": ("0, 1, 2", "0")}),
    ],
)
def test_folds_and_seeds_are_those_of_the_experiment_s_own_sweep(
    tmp_path: Path, experiment: str, folds: tuple[int, ...], seeds: tuple[int, ...], expected: dict[str, Any]
) -> None:
    jobs = [FakeJob(None, seed, fold, experiment=experiment) for fold in folds for seed in seeds]
    runs = load_runs(write_sweep(tmp_path / "sweep", tuple(jobs), {experiment: {"title": "Folds", "rows": None}}))
    lines = setting_differences(runs, experiment).lines
    found = {entry["setting"]: (entry["full"], entry["obtained"]) for entry in lines}
    assert {name: found[name] for name in ("folds", "seeds") if name in found} == expected


def test_a_row_that_is_gone_is_said(tmp_path: Path) -> None:
    runs = make(tmp_path)
    runs.jobs["row"] = ["before", "before", "s80"]
    table = setting_differences(runs, "sparsity")
    assert table.notes == ("sparsity, before: the experiment has no such row any more; its full scale is not known",)
    assert "epochs" in [entry["setting"] for entry in table.lines]  # the other row has differences


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["data=amos_ct"], "AMOS-CT"),
        (["data=amos_mri"], "AMOS-MRI"),
        (["data=amos_both"], "AMOS-MRI"),
        (["data=btcv"], "BTCV"),
        (["data=brats"], "BraTS"),
        (["data=brats_2021"], "BraTS2021"),
        (["data=msd", "data.name=Task01_BrainTumour"], "BraTS"),
        (["data=msd", "data.name=Task04_Hippocampus"], "Task04_Hippocampus"),
        (["data=phantom"], "phantom"),
    ],
)
def test_dataset_names_are_the_paper_s(overrides: list[str], name: str) -> None:
    assert dataset_name({"data": as_plain(compose_config(overrides).data)}) == name


@pytest.mark.parametrize(("value", "ends"), [(90.3, (90.3, 90.3)), ("90.1-90.2", (90.1, 90.2)), (None, (None, None))])
def test_published_ranges(value: Any, ends: tuple[float | None, float | None]) -> None:
    assert published_range(value) == ends


def test_a_config_of_an_earlier_version_is_read_by_the_keys_of_today() -> None:
    earlier = {
        "network": {"name": "dynunet", "base_features": 4},
        "dsff": {"masks": False, "density": 0.2},
        "training": {"epochs": 3, "optimizer": {"lr": 0.1}, "schedule": {"interval": "step"}, "loss": {"smooth": 1}},
        "seed": 1,
    }
    today = {
        "network": {"_target_": "e2enet.network.baselines.DynUNet", "base_features": 4},
        "dsff": {"enabled": False, "density": 0.2},
        "training": {"epochs": 3},
        **{"optimizer": {"lr": 0.1}, "schedule": {"interval": "step"}, "loss": {"smooth": 1}, "seed": 1},
    }
    assert with_names_of_today(earlier) == today and with_names_of_today(today) == today
