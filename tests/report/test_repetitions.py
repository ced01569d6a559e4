"""Every run stands at its distance from the reference's run of the same fold, seed and length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from e2enet.report.pictures.repetitions import draw_repetitions, run_differences
from e2enet.report.results.runs import Runs
from tests.report.conftest import ABLATION, FakeJob, write_sweep
from tests.report.test_pictures import rows_of


def jobs_of(epochs: int, dice: dict[str, list[float]]) -> tuple[FakeJob, ...]:
    return tuple(
        FakeJob(row, seed, dice=score, epochs=epochs, epochs_done=epochs, density=epochs / 100)
        for row, scores in dice.items()
        for seed, score in enumerate(scores)
        if not np.isnan(score)
    )


def with_length(job: FakeJob) -> FakeJob:
    return replace(job, overrides=(*job.overrides, f"training.epochs={job.epochs}"))


SHORT = jobs_of(4, {"s80": [0.80, 0.82, 0.81], "s90": [0.78, 0.79, 0.80], "s50": [0.81, np.nan, 0.83]})
LONG = jobs_of(8, {"s80": [0.85, 0.86], "s90": [0.86, 0.88]})


def scores(runs: Runs) -> dict[tuple[str, int, int], float]:
    return {(job.row, job.seed, job.epochs): 100 * job.dice for job in runs.jobs.itertuples()}


def test_runs_are_compared_at_their_own_length_fold_and_seed(tmp_path: Path) -> None:
    jobs = tuple(with_length(job) for job in SHORT + LONG)
    runs, rows = rows_of(write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION}))
    dice = scores(runs)
    found = {(line.label, line.steps): line for line in run_differences(runs, rows, "sparsity")}
    steps = next(iter(runs.configs.values()))["training"]["steps_per_epoch"]
    assert {key: len(line.points) for key, line in found.items()} == {
        ("S = 0.9", 4 * steps): 3,
        ("S = 0.5", 4 * steps): 2,
        ("S = 0.9", 8 * steps): 2,
    }
    for (label, length), line in found.items():
        row = {"S = 0.9": "s90", "S = 0.5": "s50"}[label]
        epochs = length // steps
        seeds = [seed for seed in range(3) if (row, seed, epochs) in dice]
        wanted = [dice[row, seed, epochs] - dice["s80", seed, epochs] for seed in seeds]
        np.testing.assert_allclose(line.points, wanted)
        reference = [value for (name, _, own), value in dice.items() if (name, own) == ("s80", epochs)]
        assert line.spread == pytest.approx(np.ptp(reference))


def test_a_panel_per_length_with_a_point_per_run_and_the_band_of_seeds(tmp_path: Path) -> None:
    jobs = tuple(with_length(job) for job in SHORT + LONG)
    runs, rows = rows_of(write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION}))
    figure = draw_repetitions(runs, rows, "sparsity")
    assert figure is not None
    steps = next(iter(runs.configs.values()))["training"]["steps_per_epoch"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"{4 * steps:,} steps", f"{8 * steps:,} steps"]
    for axes, length in zip(figure.axes, (4 * steps, 8 * steps), strict=True):
        lines = [line for line in run_differences(runs, rows, "sparsity") if line.steps == length]
        points = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
        means = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "|"]
        for line, drawn, mean in zip(lines, points, means, strict=True):
            np.testing.assert_allclose(drawn, line.points)
            assert mean == pytest.approx(np.mean(line.points))
        (band,) = axes.patches
        assert (band.get_x(), band.get_width()) == pytest.approx((-lines[0].spread, 2 * lines[0].spread))


def test_a_row_far_away_has_its_mean_beside_an_arrow_and_leaves_the_scale_alone(tmp_path: Path) -> None:
    far = jobs_of(4, {"s80": [0.80, 0.82], "s90": [0.79, 0.80], "s70": [0.82, 0.83], "s50": [0.3, 0.4]})
    runs, rows = rows_of(write_sweep(tmp_path / "sweep", far, {"sparsity": ABLATION}))
    figure = draw_repetitions(runs, rows, "sparsity")
    assert figure is not None
    (axes,) = figure.axes
    means = {line.label: line.mean for line in run_differences(runs, rows, "sparsity")}
    assert [text.get_text() for text in axes.texts] == [f" ← −{-means['S = 0.5']:.1f}"]  # noqa: RUF001
    low, high = axes.get_xlim()
    assert means["S = 0.5"] < 2 * low and low < means["S = 0.9"] < means["S = 0.7"] < high
    assert sum(line.get_marker() == "|" for line in axes.lines) == 2


def test_lines_that_differ_in_more_than_the_length_keep_their_labels(tmp_path: Path) -> None:
    jobs = tuple(
        FakeJob(row, 0, dice=0.8, density=rate, overrides=(*FakeJob(row).overrides, f"optimizer.lr={rate}"))
        for row in ("s80", "s90")
        for rate in (0.1, 0.2)
    )
    runs, rows = rows_of(write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION}))
    labels = [line.label for line in run_differences(runs, rows, "sparsity")]
    assert labels == ["S = 0.9 (optimizer.lr=0.1)", "S = 0.9 (optimizer.lr=0.2)"]


def test_each_reference_has_its_own_panel_and_band(tmp_path: Path) -> None:
    jobs = tuple(
        FakeJob(row, seed, dice=dice, density=rate, overrides=(*FakeJob(row).overrides, f"optimizer.lr={rate}"))
        for rate, spread in ((0.1, 0.02), (0.2, 0.1))
        for row in ("s80", "s90")
        for seed, dice in enumerate((0.8 - spread, 0.8))
    )
    runs, rows = rows_of(write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION}))
    figure = draw_repetitions(runs, rows, "sparsity")
    assert figure is not None
    bands = [axes.patches[0].get_width() / 2 for axes in figure.axes]
    references = [row for row in rows if row.line["reference"]]
    assert len(references) == 2 and bands == pytest.approx([row.line["seed_spread"] for row in references])
    assert bands[1] > 2 * bands[0]
    for axes, row in zip(figure.axes, references, strict=True):
        assert row.label in axes.get_title(loc="left").replace("\n", " ")


def test_without_repetitions_there_is_no_picture(tmp_path: Path) -> None:
    once = (FakeJob("s80"), FakeJob("s90"))
    runs, rows = rows_of(write_sweep(tmp_path / "once", once, {"sparsity": ABLATION}))
    assert draw_repetitions(runs, rows, "sparsity") is None
    alone = (FakeJob("s80", 0), FakeJob("s80", 1))
    runs, rows = rows_of(write_sweep(tmp_path / "alone", alone, {"sparsity": ABLATION}))
    assert draw_repetitions(runs, rows, "sparsity") is None
