"""A sweep folder becomes tables: every state and score, and nothing that is not in the files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from filelock import FileLock

from e2enet.common.errors import InputError
from e2enet.report.results.run_files import read_progress
from e2enet.report.results.runs import CASE_COLUMNS, JOB_COLUMNS, load_runs
from e2enet.system.locks import LOCK_NAME
from tests.report.conftest import ABLATION, CASES, JOBS, FakeJob, case_scores, job_record, write_job, write_sweep


def test_jobs_are_what_their_files_say(sweep_folder: Path) -> None:
    runs = load_runs(sweep_folder)
    jobs = runs.jobs
    assert list(jobs.columns) == list(JOB_COLUMNS)
    assert jobs["key"].tolist() == [job.key for job in JOBS]
    assert jobs["state"].tolist() == ["finished"] * 5 + ["interrupted", "crashed", "pending"]
    assert jobs["label"].tolist() == ["S = 0.9"] * 2 + ["S = 0.8"] * 2 + ["S = 0.7"] * 2 + ["S = 0"] * 2
    first = jobs.iloc[0]
    summary = json.loads((sweep_folder / JOBS[0].folder / "summary.json").read_text())
    assert first["dice"] == summary["mean"]["dice"] and first["hd95"] == summary["mean"]["hd95"]
    assert (first["epoch"], first["epochs"], first["best"], first["seconds"]) == (4, 4, 0.8, 300)
    assert (first["params"], first["flops_exact"], first["flops_paper"]) == (1.1e6, 2.2e9, 4.4e9)
    crashed, pending = jobs.iloc[6], jobs.iloc[7]
    assert crashed["error"] == "loss is nan\nat step <7>" and crashed["epoch"] == 1
    assert math.isnan(crashed["dice"]) and math.isnan(pending["epochs"]) and pending["error"] is None
    assert runs.job_folder(JOBS[0].key) == sweep_folder / JOBS[0].folder


def test_cases_are_of_finished_jobs_with_their_outcomes(sweep_folder: Path) -> None:
    cases = load_runs(sweep_folder).cases
    assert list(cases.columns) == list(CASE_COLUMNS)
    assert set(cases["key"]) == {job.key for job in JOBS[:5]}
    own = cases[cases["key"] == JOBS[0].key].reset_index()
    assert own["dice"].dropna().tolist() == [line["dice"] for line in case_scores(JOBS[0]) if line["dice"] != ""]
    assert own["outcome"].tolist()[:2] == ["scored", "missed"]
    last = own.iloc[-1]
    assert (last["case"], last["class"], last["outcome"]) == (CASES[-1], "2", "absent") and math.isnan(last["dice"])


def test_scores_of_an_end_before_do_not_count(sweep_folder: Path) -> None:
    # A finished job was started again and killed: its scores belong to other weights.
    record = job_record(JOBS[0]) | {"state": "running", "ended": None}
    (sweep_folder / JOBS[0].folder / "job.json").write_text(json.dumps(record))
    runs = load_runs(sweep_folder)
    assert runs.jobs["state"][0] == "interrupted" and math.isnan(runs.jobs["dice"][0])
    assert JOBS[0].key not in set(runs.cases["key"])


def test_a_job_that_holds_its_folder_is_running(sweep_folder: Path) -> None:
    folder = sweep_folder / JOBS[5].folder
    (folder / "job.json").write_text(json.dumps(job_record(JOBS[5]) | {"state": "running", "ended": None}))
    with FileLock(folder / LOCK_NAME):
        jobs = load_runs(sweep_folder).jobs
    assert (jobs["state"][5], jobs["epoch"][5]) == ("running", 2)


def test_a_job_of_two_experiments_has_a_line_in_each(tmp_path: Path) -> None:
    again = FakeJob("s80", experiment="width")
    ablations = {"sparsity": ABLATION, "width": {"title": "Width", "rows": {"s80": {"label": "as ever"}}}}
    jobs = load_runs(write_sweep(tmp_path / "two", (FakeJob("s80"), again), ablations)).jobs
    assert jobs["label"].tolist() == ["S = 0.8", "as ever"]
    assert jobs["dice"][0] == jobs["dice"][1] > 0.5


def test_settings_that_differ_are_in_the_label(tmp_path: Path) -> None:
    common = ("training=small", "paths.data=/elsewhere")
    jobs = tuple(
        FakeJob("s80", seed, overrides=(*common, f"dsff.growth={growth}"), density=density)
        for growth, density in (("random", 0.2), ("gradient", 0.21))
        for seed in (0, 1)
    )
    table = load_runs(write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION})).jobs
    assert table["label"].tolist() == ["S = 0.8 (dsff.growth=random)"] * 2 + ["S = 0.8 (dsff.growth=gradient)"] * 2
    assert table["variant"].tolist()[0] == "dsff.growth=random"


def test_plain_runs_are_read_and_repeats_count_once(tmp_path: Path) -> None:
    for name, job in (
        ("1", FakeJob(None, 0, experiment=None)),
        ("2", FakeJob(None, 0, experiment=None, dice=0.6)),
        ("3", FakeJob(None, 0, experiment=None, state="interrupted")),
        ("4", FakeJob(None, 1, experiment=None)),
        ("5", FakeJob(None, 1, experiment=None, overrides=(*FakeJob(None).overrides, "dsff=set"))),
    ):
        write_job(tmp_path / name, job, with_state=False)
    jobs = load_runs(tmp_path).jobs
    # 1, 2 and 3 are one configuration with one seed: the last finished run represents them.
    assert [Path(folder).name for folder in jobs["folder"]] == ["2", "4", "5"]
    assert jobs["seconds"].isna().all() and jobs["experiment"].tolist() == [None] * 3
    assert "dsff.fraction_schedule=cosine" in jobs["label"][0] and jobs["label"][0] == jobs["label"][1]
    assert "dsff.fraction_schedule=constant" in jobs["label"][2]


def test_measured_figures_are_found(sweep_folder: Path) -> None:
    entry = {"network": "n", "latency_s": 0.25, "peak_bytes": 2**30}
    (sweep_folder / "measured.json").write_text(json.dumps({JOBS[0].key: entry, JOBS[1].key: {"error": "no"}}))
    jobs = load_runs(sweep_folder).jobs
    assert (jobs["latency_s"][0], jobs["peak_bytes"][0]) == (0.25, 2**30)
    assert jobs["latency_s"][1:].isna().all()


def test_regions_are_told_from_classes(sweep_folder: Path) -> None:
    folder = sweep_folder / JOBS[0].folder
    summary = json.loads((folder / "summary.json").read_text())
    summary["regions"] = {"whole": {"labels": [1, 2]}, "rear": {"labels": [2]}}
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "scores.csv").open("a") as stream:
        stream.write("NA,1+2,whole,0.5,0.5,1.0,scored\nNA,2,rear,0.5,0.5,1.0,scored\n")
    cases = load_runs(sweep_folder).cases
    added = cases[cases["case"] == "NA"]
    assert added["region"].tolist() == [True, True] and not cases[cases["case"] != "NA"]["region"].any()


def test_curves_are_the_metrics(sweep_folder: Path) -> None:
    runs = load_runs(sweep_folder)
    curves = runs.curves(JOBS[0].key)
    assert curves["val/dice"].dropna().tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert runs.curves(JOBS[-1].key).empty
    with pytest.raises(KeyError, match="no job"):
        runs.curves("unknown")


def test_progress_while_the_logger_writes(tmp_path: Path) -> None:
    config = {"training": {"epochs": 9, "validate_full": 5}}
    (tmp_path / "metrics.csv").touch()  # Lightning creates the file before its first line
    progress = read_progress(tmp_path, config)
    assert (progress.epoch, progress.epochs) == (0, 9) and math.isnan(progress.best)
    # Epoch 1 has logged steps but has not ended.
    lines = ["epoch,step,train/loss,val/dice,time/data_share_step", "0,1,,0.4,", "0,1,2.0,,", "1,3,,,0.1"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    progress = read_progress(tmp_path, config)
    assert progress.epoch == 1 and progress.best_patches == 0.4 and math.isnan(progress.best)
    assert read_progress(tmp_path, {"training": {"epochs": 9, "validate_full": None}}).best == 0.4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.csv", "case,class,name\na,1,anterior\n", "lacks the columns"),
        ("scores.csv", "case,class,name,dice,nsd,hd95,outcome\na,7,liver,1,1,0,scored\n", "no classes"),
        ("scores.csv", "case,class,name,dice,nsd,hd95,outcome\na,1,anterior,much,1,0,scored\n", "no number"),
        ("scores.csv", "", "not a table"),
        ("metrics.csv", 'epoch,step\n0,"1', "comma-separated"),
        ("config.yaml", "[1, 2]", "config"),
        ("summary.json", "{", "JSON"),
        ("summary.json", "{}", "lacks mean, classes"),
        ("cost.json", '{"density": 1}', "lacks exact, paper"),
    ],
)
def test_broken_files_are_named(sweep_folder: Path, name: str, content: str, message: str) -> None:
    path = sweep_folder / JOBS[0].folder / name
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_runs(sweep_folder)
    assert str(path) in str(caught.value)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sweep\.json"):
        load_runs(tmp_path)
