"""The lines of an experiment: order, means, tests, counts; unknown values are blank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from e2enet.common.errors import InputError
from e2enet.report.results.options import Options
from e2enet.report.results.runs import Runs, load_runs
from e2enet.report.results.statistics import holm
from e2enet.report.tables.lines import experiment_lines
from e2enet.report.tables.sections import build_report
from tests.report.conftest import ABLATION, CASES, JOBS, FakeJob, write_job, write_sweep

OPTIONS = Options(resamples=200, trade_off=True)


def count(overrides: Sequence[str], setting: Mapping[str, Any]) -> Mapping[str, float]:
    """Stand-in for the cost counter whose result shows its arguments."""
    return {"params": float(len(overrides)), "gflops_paper": float(setting["patch_size"][0]), "gflops_exact": 1.0}


def lines_of(runs: Runs, experiment: str | None = "sparsity", reference: str | None = None) -> list[dict[str, Any]]:
    return experiment_lines(runs, experiment, OPTIONS, count=count, reference=reference)


def make(tmp_path: Path, jobs: Sequence[FakeJob], ablations: Mapping[str, Any] | None = None) -> Runs:
    given = {"sparsity": ABLATION} if ablations is None else dict(ablations)
    return load_runs(write_sweep(tmp_path / "made", tuple(jobs), given))


@pytest.fixture(scope="module")
def lines(written_sweep: Path) -> list[dict[str, Any]]:
    return lines_of(load_runs(written_sweep))


def test_rows_come_in_the_paper_s_order_with_what_is_published(lines: list[dict[str, Any]]) -> None:
    assert [line["row"] for line in lines] == ["s90", "s80", "s70", "dense", "s50"]
    assert [line["published_dice"] for line in lines] == [89.6, 90.3, "90.1-90.2", None, None]
    assert [line["published_params"] for line in lines] == [7.64, 9.44, 11.23, 23.9, None]
    assert all(line["published_nsd"] is None for line in lines)


def test_rows_without_finished_jobs_stay_and_say_so(lines: list[dict[str, Any]]) -> None:
    states = [line["state"] for line in lines]
    assert states == ["2 of 2", "2 of 2", "1 of 2, 1 interrupted", "0 of 2, 1 crashed, 1 pending", "not run"]
    for line in lines[3:]:
        assert all(math.isnan(line[name]) for name in ("dice", "dice_low", "nsd", "params", "p", "p_holm", "pt"))
        assert (line["runs"], line["cases"], line["missed"]) == (0, 0, 0)


def test_dice_is_the_mean_of_run_means_with_their_deviation(lines: list[dict[str, Any]], written_sweep: Path) -> None:
    jobs = load_runs(written_sweep).jobs
    means = 100 * jobs["dice"][:2].to_numpy()
    assert lines[0]["dice"] == pytest.approx(means.mean())
    assert lines[0]["dice_sd"] == pytest.approx(abs(means[0] - means[1]) / math.sqrt(2))
    assert math.isnan(lines[2]["dice_sd"])  # one run has no deviation
    assert lines[0]["nsd"] == pytest.approx(100 * jobs["nsd"][:2].mean())
    # Every run scored the same cases, so the mean lies inside the interval over pooled cases.
    assert all(line["dice_low"] < line["dice"] < line["dice_high"] for line in lines[:3])


def test_missed_structures_are_counted_over_runs(lines: list[dict[str, Any]]) -> None:
    # Seed 0 misses one structure. Each run has 8 cases x 2 classes, minus one absent structure.
    assert [(line["missed"], line["structures"], line["cases"]) for line in lines[:3]] == [
        (1, 30, 8),
        (1, 30, 8),
        (1, 15, 8),
    ]


def test_tests_are_against_the_reference_with_holm(lines: list[dict[str, Any]]) -> None:
    assert [line["reference"] for line in lines] == [False, True, False, False, False]
    # Every case of s90 is worse: p is 2 of 2^8 sign patterns.
    assert lines[0]["p"] == 2 / 2**8 and lines[0]["pairs"] == len(CASES)
    assert math.isnan(lines[1]["p"])
    np.testing.assert_allclose([line["p_holm"] for line in lines], holm([line["p"] for line in lines]))


def test_tests_have_effect_sizes_in_points_of_dice(lines: list[dict[str, Any]], written_sweep: Path) -> None:
    runs = load_runs(written_sweep)
    labels = dict(zip(runs.jobs["key"], runs.jobs["label"], strict=True))
    scored = runs.cases.assign(row=runs.cases["key"].map(labels))
    means = scored.groupby(["row", "case", "class"])["dice"].mean().groupby(["row", "case"]).mean()
    differences = 100 * (means["S = 0.9"] - means["S = 0.8"])
    assert lines[0]["against"] == "S = 0.8" and (differences < 0).all()
    assert lines[0]["difference"] == pytest.approx(differences.median()) and lines[0]["rank_biserial"] == -1
    assert differences.min() <= lines[0]["difference_low"] < lines[0]["difference"] < lines[0]["difference_high"] < 0
    for line in (lines[1], *lines[3:]):
        assert line["against"] is None and math.isnan(line["difference"]) and math.isnan(line["rank_biserial"])


def test_a_row_that_no_longer_composes_is_not_counted(written_sweep: Path) -> None:
    def renamed(overrides: Sequence[str], setting: Mapping[str, Any]) -> Mapping[str, float]:
        raise InputError("no such key")

    lines = experiment_lines(load_runs(written_sweep), "sparsity", OPTIONS, count=renamed)
    assert [line["row"] for line in lines] == ["s90", "s80", "s70", "dense", "s50"]
    assert all(math.isnan(line["counted_params"]) for line in lines) and lines[0]["dice"] > 0


def test_costs_are_counted_at_the_row_s_own_scale(tmp_path: Path) -> None:
    rows = {
        "a": {"label": "A", "overrides": ["x=1", "y=2"]},
        "b": {"label": "B", "overrides": [], "setting": {"patch_size": [96, 96, 96]}},
    }
    runs = make(tmp_path, [FakeJob("s90")], {"sparsity": ABLATION, "scales": {**ABLATION, "rows": rows}})
    found = lines_of(runs, "scales", "a")
    assert [(line["counted_params"], line["counted_gflops_paper"]) for line in found] == [(2.0, 32.0), (0.0, 96.0)]


def test_another_reference_by_row_or_label(written_sweep: Path) -> None:
    runs = load_runs(written_sweep)
    for name in ("s90", "S = 0.9"):
        assert [line["reference"] for line in lines_of(runs, reference=name)] == [True, False, False, False, False]
    with pytest.raises(InputError, match=r"'s99'.*s90 \| s80"):
        lines_of(runs, reference="s99")


def test_variants_are_compared_with_the_reference_s_same_variant(tmp_path: Path) -> None:
    jobs = [
        FakeJob(row, 1, dice=dice, density=density, overrides=("training=small", f"dsff.growth={growth}"))
        for row, growth, dice, density in (
            ("s90", "random", 0.70, 0.10),
            ("s90", "gradient", 0.90, 0.11),
            ("s80", "random", 0.80, 0.20),
            ("s80", "gradient", 0.80, 0.21),
        )
    ]
    found = {line["label"]: line for line in lines_of(make(tmp_path, jobs))}
    worse, better = found["S = 0.9 (dsff.growth=random)"], found["S = 0.9 (dsff.growth=gradient)"]
    assert worse["dice"] < 75 and better["dice"] > 85
    # Both differ from their own partner in every case: p is 2 of 2^8.
    assert worse["p"] == better["p"] == 2 / 2**8
    assert found["S = 0.8 (dsff.growth=gradient)"]["reference"]
    (section,) = build_report(make(tmp_path / "again", jobs), OPTIONS, count=count).sections
    against = "S = 0.8 (dsff.growth=random) or S = 0.8 (dsff.growth=gradient) of the same configuration"
    assert any(against in note for note in section.paired.notes)


def test_rows_of_other_data_are_not_paired(tmp_path: Path) -> None:
    runs = make(tmp_path, [FakeJob("s90", 1, density=0.1), FakeJob("s80", 1)])
    runs.configs[runs.jobs["key"][0]]["data"]["name"] = "BTCV"  # type: ignore[index]
    found = lines_of(runs)
    assert math.isnan(found[0]["p"]) and found[0]["pairs"] == 0
    # PT is relative to the best row of a dataset, and each dataset has one row only.
    assert math.isnan(found[0]["pt"]) and math.isnan(found[1]["pt"])


def test_trade_off_is_among_the_rows(lines: list[dict[str, Any]]) -> None:
    best = max(line["dice"] for line in lines[:3])
    # s90 has the fewest parameters (1.1 M) and FLOPs.
    assert lines[0]["pt"] == pytest.approx(lines[0]["dice"] / best + 0.5 * 2)
    assert lines[1]["pt"] == pytest.approx(lines[1]["dice"] / best + 0.5 * (1.1 / 1.2 + 4.4 / 4.8))


def test_an_experiment_without_rows_has_a_line_per_run_and_the_mean(tmp_path: Path) -> None:
    jobs = [FakeJob(None, 0, fold, dice, experiment="folds") for fold, dice in ((1, 0.7), (0, 0.9))]
    pending = FakeJob(None, 0, 2, experiment="folds", state="pending")
    ablation = {"title": "Five folds", "rows": None, "setting": None}
    found = lines_of(make(tmp_path, [*jobs, pending], {"folds": ablation}), "folds")
    assert [line["label"] for line in found] == ["fold 0, seed 0", "fold 1, seed 0", "fold 2, seed 0", "mean"]
    assert [line["role"] for line in found] == ["run", "run", "run", "mean"]
    assert [line["state"] for line in found] == ["1 of 1", "1 of 1", "0 of 1, 1 pending", "2 of 3, 1 pending"]
    assert found[3]["dice"] == pytest.approx((found[0]["dice"] + found[1]["dice"]) / 2)
    assert found[3]["dice_sd"] == pytest.approx(abs(found[0]["dice"] - found[1]["dice"]) / math.sqrt(2))
    assert not any(line["reference"] for line in found)


def test_jobs_outside_of_experiments_are_lines_by_what_differs(tmp_path: Path) -> None:
    for name, density, dice in (("a", "0.1", 0.7), ("b", "0.3", 0.9)):
        overrides = (*FakeJob(None).overrides, f"dsff.density={density}")
        job = FakeJob(None, 1, dice=dice, experiment=None, overrides=overrides)
        write_job(tmp_path / name, job, with_state=False)
    found = lines_of(load_runs(tmp_path), None)
    assert [line["label"] for line in found] == ["dsff.density=0.1", "dsff.density=0.3"]
    assert [line["reference"] for line in found] == [True, False]
    assert found[1]["p"] == 2 / 2**8


def test_invented_structures_lower_the_mean_of_their_case(tmp_path: Path) -> None:
    runs = make(tmp_path, [FakeJob("s90", 1, density=0.1), FakeJob("s80", 1)])
    absent = (runs.cases["key"] == JOBS[1].key) & (runs.cases["outcome"] == "absent")
    before = lines_of(runs)[0]
    runs.cases.loc[absent, ["dice", "outcome"]] = pd.array([0.0, "invented"], dtype=object)
    after = lines_of(runs)[0]
    assert (before["invented"], after["invented"]) == (0, 1)
    assert after["structures"] == before["structures"]  # the reference has no more structures than before
    assert after["dice_low"] < before["dice_low"] - 1


def test_runs_of_fold_all_are_a_line_apart(tmp_path: Path) -> None:
    jobs = [FakeJob("s90", 1, density=0.1), FakeJob("s80", 1, dice=0.85)]
    before = lines_of(make(tmp_path, jobs))
    trained = [FakeJob("s80", seed, "all", 0.99, density=0.3) for seed in (0, 1)]
    found = lines_of(make(tmp_path / "all", [*jobs, *trained]))
    apart = found.pop(2)
    assert (apart["row"], apart["label"]) == ("s80", "S = 0.8, fold all, scored on training cases")
    assert (apart["role"], apart["state"], apart["reference"]) == ("training", "2 of 2", False)
    assert apart["dice"] > 90 and apart["dice_sd"] > 0
    assert all(math.isnan(apart[name]) for name in ("dice_low", "dice_high", "p", "p_holm", "pt"))
    assert apart["published_dice"] is None
    # The other lines do not change with these runs.
    pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(before))


def test_runs_of_fold_all_are_in_no_mean_over_folds(tmp_path: Path) -> None:
    jobs = [FakeJob(None, 0, fold, 0.7, experiment="folds") for fold in (0, 1)]
    jobs.append(FakeJob(None, 0, "all", 0.99, experiment="folds"))
    found = lines_of(make(tmp_path, jobs, {"folds": {"title": "Five folds", "rows": None}}), "folds")
    assert [line["label"] for line in found] == [
        *("fold 0, seed 0", "fold 1, seed 0", "mean", "fold all, scored on training cases")
    ]
    assert found[2]["runs"] == 2 and found[2]["dice"] == pytest.approx((found[0]["dice"] + found[1]["dice"]) / 2)


@pytest.mark.parametrize("ablations", [{"sparsity": {**ABLATION, "rows": {"s80": ABLATION["rows"]["s80"]}}}, {}])
def test_a_row_that_the_experiment_no_longer_has_keeps_its_line(
    tmp_path: Path, ablations: Mapping[str, Mapping[str, Any]]
) -> None:
    found = lines_of(make(tmp_path, [FakeJob("s90", 1, density=0.1), FakeJob("s80", 1)], ablations))
    (line,) = [line for line in found if line["row"] == "s90"]
    assert (line["label"], line["state"]) == ("s90", "1 of 1")
    assert line["published_dice"] is None and line["published_on"] is None and math.isnan(line["counted_params"])
    assert line["dice"] > 0 and len(found) == 2


def test_a_job_without_row_beside_rows_keeps_its_line(tmp_path: Path) -> None:
    found = lines_of(make(tmp_path, [FakeJob("s80", 1), FakeJob(None, 1, density=0.3)]))
    assert found[-1]["row"] is None and found[-1]["label"] == "sparsity" and found[-1]["runs"] == 1


def test_the_interval_is_of_the_dice_beside_it(tmp_path: Path) -> None:
    # One reference only has Posterior. In the other cases seed 0 predicts none, and seed 1 invents it in each.
    runs = make(tmp_path, [FakeJob("s80", 0), FakeJob("s80", 1)])
    first, second = runs.jobs["key"]
    runs.cases["dice"] = 0.9
    posterior = (runs.cases["class"] == "2") & (runs.cases["case"] != CASES[0])
    runs.cases.loc[posterior & (runs.cases["key"] == first), "dice"] = math.nan
    runs.cases.loc[posterior & (runs.cases["key"] == second), "dice"] = 0.0
    runs.jobs["dice"] = [0.9, (0.9 + 0.9 / len(CASES)) / 2]
    line = next(line for line in lines_of(runs) if line["row"] == "s80")
    assert line["dice_low"] < line["dice"] < line["dice_high"]


def test_datasets_are_told_apart_by_what_the_paper_calls_them(tmp_path: Path) -> None:
    # Both datasets read the folder amos22, and here their cases have the same names.
    jobs = [
        FakeJob(row, 1, density=density, overrides=("training=small", f"data={data}"))
        for row, density, data in (("s90", 0.1, "amos_ct"), ("s80", 0.2, "amos_mri"))
    ]
    runs = make(tmp_path, jobs)
    runs.jobs["data"] = "amos22"
    found = lines_of(runs)
    assert [line["data"] for line in found[:2]] == ["AMOS-CT", "AMOS-MRI"]
    assert all(math.isnan(line[name]) for line in found for name in ("p", "pt"))


@pytest.mark.parametrize("reference", ["dsff.density=0.3", "dsff.density=0.3, mean"])
def test_a_configuration_is_a_reference_where_there_are_no_rows(tmp_path: Path, reference: str) -> None:
    given = FakeJob(None).overrides
    jobs = [
        FakeJob(None, 0, fold, density=density, experiment="folds", overrides=(*given, f"dsff.density={density}"))
        for density in (0.1, 0.3)
        for fold in (0, 1)
    ]
    runs = make(tmp_path, jobs, {"folds": {"title": "Five folds", "rows": None}})
    (section,) = build_report(runs, OPTIONS, count=count, reference=reference).sections
    assert [line["label"] for line in section.lines if line["reference"]] == ["dsff.density=0.3, mean"]
    with pytest.raises(InputError, match=r"expected dsff\.density=0\.1 \| dsff\.density=0\.3"):
        build_report(runs, OPTIONS, count=count, reference="dsff.density=0.2")
