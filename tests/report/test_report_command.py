"""The report command: from a folder to files; wrong arguments are reported before anything is written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from e2enet.common.errors import InputError
from e2enet.report.__main__ import main
from e2enet.report.pictures.gallery import draw_pictures
from e2enet.report.results.options import Options, read_options
from e2enet.report.results.runs import load_runs
from e2enet.report.tables.sections import build_report
from e2enet.report.write import write_tables
from tests.report.conftest import ABLATION, CASES, FakeJob, job_record, write_sweep


def test_the_whole_report(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sweep_folder), "resamples=200", "trade_off.show=true", "trade_off.cost=0.25"])
    output = sweep_folder / "report"
    assert {"sparsity.md", "sparsity.csv", "sparsity.tex", "sparsity-ranks.csv", "jobs.csv", "index.html"} <= {
        p.name for p in output.iterdir()
    }
    table = pd.read_csv(output / "sparsity.csv")
    assert table["label"].tolist() == ["S = 0.9", "S = 0.8", "S = 0.7", "S = 0", "S = 0.5"]
    assert table["published_dice"].tolist()[:3] == ["89.6", "90.3", "90.1-90.2"]
    # Counted by building each row's network: densities 0.1, 0.2, 0.3, 1 and 0.5 in the order of rows.
    assert table["counted_params"].rank().tolist() == [1, 2, 3, 5, 4]
    text = (output / "sparsity.md").read_text()
    headings = re.findall(r"^(?:# |\*\*(?!In words))(.+?)\**$", text, re.MULTILINE)
    assert headings == [
        "Sparsity level",
        "Sparsity level: accuracy",
        "Sparsity level: tests against the reference",
        "Sparsity level: ranks over cases",
        "Sparsity level: cost",
        "Published and obtained Dice",
        "What differs from full scale",
        "Jobs that did not finish",
    ]
    assert "200 resamples" in text and "0.25 (P" in text and "loss is nan" in text
    assert (output / "sparsity.tex").read_text().count(r"\begin{table}") == 4
    jobs = pd.read_csv(output / "jobs.csv")
    assert jobs["state"].tolist().count("finished") == 5
    # All tables use the same unit.
    assert jobs["dice"][:2].mean() == pytest.approx(table["dice"][0])
    assert jobs["nsd"][:2].mean() == pytest.approx(table["nsd"][0]) and jobs["best"].tolist()[:2] == [80.0, 81.0]
    printed = capsys.readouterr().out
    assert "Jobs that did not finish" in printed and f"written: {output / 'index.html'}" in printed


def test_sections_follow_the_manifest_and_end_with_other_jobs(tmp_path: Path) -> None:
    # Two experiments share a job; another job belongs to no experiment.
    jobs = (FakeJob("s80", 1), FakeJob("s80", 1, experiment="again"), FakeJob(None, 1, experiment=None, density=0.4))
    folder = write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION, "again": {**ABLATION, "setting": None}})
    report = build_report(load_runs(folder), Options(resamples=200), count=lambda overrides, setting: {})
    assert [(section.experiment, section.name) for section in report.sections] == [
        ("sparsity", "sparsity"),
        ("again", "again"),
        (None, "runs"),
    ]
    assert report.unfinished.lines == ()
    written = write_tables(report, tmp_path / "out")
    assert [path.name for path in written if path.suffix == ".md"] == ["sparsity.md", "again.md", "runs.md"]


def test_an_experiment_that_the_manifest_does_not_describe_has_its_section(tmp_path: Path) -> None:
    jobs = tuple(FakeJob(None, 0, fold, experiment="mine") for fold in (0, 1))
    folder = write_sweep(tmp_path / "sweep", (FakeJob("s80", 1), *jobs), {"sparsity": ABLATION})
    report = build_report(load_runs(folder), Options(resamples=200), count=lambda overrides, setting: {})
    assert [section.name for section in report.sections] == ["sparsity", "mine"]
    section = report.sections[1]
    assert section.title == "mine" and [line["role"] for line in section.lines] == ["run", "run", "mean"]
    pictures = draw_pictures(report, tmp_path / "figures")
    assert "Dice by class" in [picture.title for picture in pictures["mine"]]


def test_the_notes_say_what_the_scores_are_of(sweep_folder: Path, tmp_path: Path) -> None:
    def notes(folder: Path) -> str:
        report = build_report(load_runs(folder), Options(resamples=200), count=lambda overrides, setting: {})
        return " ".join(report.sections[0].accuracy.notes)

    assert "best.ckpt, which was chosen by validation on the same cases" in notes(sweep_folder)
    assert "fold=all" not in notes(sweep_folder)
    jobs = (FakeJob("s80", 1), FakeJob("s80", 1, "all"))
    assert "fold=all are scored on the cases" in notes(write_sweep(tmp_path / "all", jobs, {"sparsity": ABLATION}))


def test_the_trade_off_is_shown_when_asked_for(sweep_folder: Path) -> None:
    for asked in (False, True):
        options = Options(resamples=200, trade_off=asked)
        cost = build_report(load_runs(sweep_folder), options, count=lambda overrides, setting: {}).sections[0].cost
        assert ("PT" in [column.heading for column in cost.shown()]) == asked
        assert any("these are ours" in note for note in cost.notes) == asked


def test_the_smallest_possible_p_is_told_where_cases_are_few(tmp_path: Path) -> None:
    def notes(name: str, rows: tuple[str, ...], count: int) -> str:
        jobs = tuple(FakeJob(row, 1, density=index / 10) for index, row in enumerate(rows, start=1))
        runs = load_runs(write_sweep(tmp_path / name, jobs, {"sparsity": ABLATION}))
        runs = replace(runs, cases=runs.cases[runs.cases["case"].isin(CASES[:count])])
        report = build_report(runs, Options(resamples=200), count=lambda overrides, setting: {})
        return " ".join(report.sections[0].paired.notes)

    # 2 of the 2^5 sign patterns are as extreme as five better cases of five.
    told = "The smallest possible p with 5 cases, where each of them is better, is 0.0625"
    assert f"{told}." in notes("one", ("s90", "s80"), 5)
    assert f"{told}; corrected, 0.125." in notes("two", ("s90", "s80", "s70"), 5)
    eight = "with 8 cases, where each of them is better, is 0.00781"
    assert eight in notes("eight", ("s90", "s80"), 8)
    assert "smallest possible" not in notes("alone", ("s80",), 5)


def test_a_reference_of_one_experiment_leaves_the_others_alone(tmp_path: Path) -> None:
    other = {"title": "Other", "reference": "b", "rows": {"a": {"label": "A"}, "b": {"label": "B"}}}
    folder = write_sweep(tmp_path / "sweep", (FakeJob("s80", 1),), {"sparsity": ABLATION, "other": other})
    runs = load_runs(folder)
    report = build_report(runs, Options(resamples=200), count=lambda overrides, setting: {}, reference="s90")
    chosen = [next(line["row"] for line in section.lines if line["reference"]) for section in report.sections]
    assert chosen == ["s90", "b"]
    with pytest.raises(InputError, match=r"'s91'.*s90 \| s80 .* a \| b"):
        build_report(runs, Options(), count=lambda overrides, setting: {}, reference="s91")


def test_watching_ends_with_the_report(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in sweep_folder.glob("s70-fold0-seed1*"):
        (folder / "job.json").write_text(json.dumps(job_record(FakeJob("s70", state="crashed", error="no memory"))))
    manifest = json.loads((sweep_folder / "sweep.json").read_text())
    manifest["jobs"].pop()  # the pending job
    (sweep_folder / "sweep.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("e2enet.report.write.write_report", lambda folder, options, **others: [folder / "page"])
    main([str(sweep_folder), "--watch"])
    printed = capsys.readouterr().out
    assert "all jobs have ended: 2 crashed, 5 finished" in printed and "written:" in printed


@pytest.mark.parametrize("long", ["--watch", "--measure"])
@pytest.mark.parametrize("names", [["--reference", "s99"], ["--compare", "s80", "s99"]])
def test_wrong_rows_are_refused_before_long_work(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch, long: str, names: list[str]
) -> None:
    for name in ("watch.watch_sweep", "measure.measure_runs"):
        monkeypatch.setattr(f"e2enet.report.{name}", lambda *_: pytest.fail("long work began"))
    with pytest.raises(SystemExit) as caught:
        main([str(sweep_folder), long, *names])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["confidence=1.5"], "confidence=1.5: expected a number in (0, 1)"),
        (["resample=5"], "did you mean resamples?"),
        (["trade_off.accuracy=-1", "seed=x"], "trade_off.accuracy=-1: expected a number >= 0"),
        (["resamples"], "resamples: expected key=value"),
        (["--reference", "s99"], "'s99'"),
        (["--compare", "s80", "s99"], "compare s80 s99: no section has both rows"),
    ],
)
def test_wrong_arguments(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(sweep_folder), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (sweep_folder / "report").exists()


def test_the_defaults_are_those_of_the_file() -> None:
    assert read_options() == Options()
    given = read_options(["confidence=0.9", "trade_off.show=true", "trade_off.accuracy=2"])
    assert given == Options(confidence=0.9, trade_off=True, accuracy=2)
