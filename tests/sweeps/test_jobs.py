"""One job and its folder: run, skipped, resumed, crashed, shared. Small programs stand in for training."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from e2enet.common.configs import compose_config
from e2enet.common.errors import ExitCode, InputError
from e2enet.common.files import read_json, write_json
from e2enet.runs.folders import job_state, read_sweep
from e2enet.sweeps import job as job_module
from e2enet.sweeps.job import run_job
from e2enet.sweeps.launch import list_jobs
from e2enet.system.locks import claimed_folder
from e2enet.training.resume import resumed_config

# A stand-in for training: counts its runs, writes a checkpoint, and reports its score in the outcome file.
TRAINS = """
import json, os, pathlib
pathlib.Path("checkpoints").mkdir(exist_ok=True)
pathlib.Path("checkpoints/last.ckpt").write_text("weights")
with open("runs.txt", "a") as stream: stream.write("x")
print("epoch 1/1", flush=True)
pathlib.Path(os.environ["E2ENET_JOB_OUTCOME"]).write_text(json.dumps({"score": 0.5}))
"""
GIVEN = ["data=phantom", "training=small", "name=sweep"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that lets jobs run a program in their folder instead of training."""

    def use(program: str) -> None:
        def command(config: DictConfig, folder: Path) -> list[str]:
            return [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{program}"]

        monkeypatch.setattr(job_module, "job_command", command)

    use(TRAINS)
    return use


def only_job(sweep: Path) -> Path:
    (job,) = read_sweep(sweep).jobs
    return job.folder


def test_a_job_is_run_recorded_and_then_skipped(
    stand_in: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job([*GIVEN, "row=null"], tmp_path) == 0.5
    folder = only_job(tmp_path)
    state = job_state(folder)
    assert (state.state, state.score, state.attempts, state.error) == ("finished", 0.5, 1, None)
    assert state.started is not None and state.ended is not None and state.seconds > 0
    assert (folder / "output.log").read_text() == "epoch 1/1\n" and not (folder / "outcome.json").exists()
    assert OmegaConf.load(folder / "config.yaml").run_folder == str(folder)
    assert f"{folder.name} | epoch 1/1" in capsys.readouterr().out
    stand_in("raise SystemExit(1)")
    assert run_job(GIVEN, tmp_path) == 0.5 and (folder / "runs.txt").read_text() == "x"
    assert "finished already" in capsys.readouterr().out


def test_a_job_stays_the_one_that_the_sweep_lists(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    """Prolonged by hand it would count as finished, with the score of its first length."""
    run_job([*GIVEN, "training.epochs=1"], tmp_path)
    folder = only_job(tmp_path)

    def resumed(*more: str) -> DictConfig:
        given = [f"resume={folder}", *more]
        return resumed_config(compose_config(given), given)

    with pytest.raises(InputError, match=re.escape(f"resume={folder}: is a job of a sweep ({tmp_path}/sweep.json), ")):
        resumed("training.epochs=2")
    with pytest.raises(InputError, match="would be another job; give them to the sweep's own command line"):
        resumed("final.mirror=false")
    assert resumed("training.checkpoint_every=7", "trainer=cpu").training.checkpoint_every == 7
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("job.json"))
    folder = tmp_path / "copy"
    assert resumed("training.epochs=2").training.epochs == 2


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('last words'); raise SystemExit(3)", "exit code 3"),
        ("print('last words'); import os; os.kill(os.getpid(), 9)", "ended by SIGKILL, as the system does when memory"),
        ("print('last words')", "exit code 0 and no result"),
    ],
)
def test_a_job_that_dies_without_a_word_leaves_its_last_ones(
    program: str, message: str, stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(program)
    assert run_job(GIVEN, tmp_path) is None
    error = job_state(only_job(tmp_path)).error
    assert error is not None and message in error.message and error.traceback == "last words"


def test_a_search_goes_on_after_a_crash(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    """A trial that crashes has no score. Optuna counts it as failed and asks for the next; NaN would end the search."""
    sweeper = pytest.importorskip("hydra_plugins.hydra_optuna_sweeper._impl")
    optuna = pytest.importorskip("optuna")
    stand_in("raise SystemExit(1)")
    scores: list[float | None] = []

    class Launcher:
        def launch(self, overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
            (given,) = overrides
            returned = JobReturn(status=JobStatus.COMPLETED, overrides=given)
            returned.return_value = run_job([*GIVEN, *given], tmp_path)
            scores.append(returned.return_value)
            stand_in(TRAINS)
            return [returned]

    values = OmegaConf.create({"optimizer.lr": "interval(0.001,0.01)"})
    search = sweeper.OptunaSweeperImpl(
        optuna.samplers.RandomSampler(seed=1), "maximize", None, "x", 2, 1, 0.0, None, None, values
    )
    search.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    search.launcher, search.hydra_context, search.sweep_dir = Launcher(), object(), str(tmp_path)
    search.sweep([])
    assert scores == [None, 0.5]


def test_a_crash_is_recorded_listed_and_tried_again(
    stand_in: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(
        "from e2enet.sweeps.inside import reporting_errors\n"
        "with reporting_errors(): raise ValueError('[red]no[/red] kernel')"
    )
    assert run_job(GIVEN, tmp_path) is None
    folder = only_job(tmp_path)
    error = job_state(folder).error
    assert error is not None and error.message == "ValueError: [red]no[/red] kernel"
    assert error.traceback.startswith("Traceback") and error.traceback.endswith("[red]no[/red] kernel\n")
    capsys.readouterr()
    assert list_jobs(tmp_path, [folder]) == 1
    assert f"  crashed {folder.name}: ValueError: [red]no[/red] kernel\n" in capsys.readouterr().out
    stand_in(TRAINS)
    assert run_job(GIVEN, tmp_path) == 0.5 and job_state(folder).attempts == 2
    assert list_jobs(tmp_path, [folder]) == 0
    assert f"{tmp_path}: 1 jobs: 1 finished\n" in capsys.readouterr().out


def test_a_mistake_of_the_launcher_itself_is_a_crash_of_this_job_alone(
    stand_in: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(job_module, "write_config", fail)
    assert run_job(GIVEN, tmp_path) is None
    error = job_state(only_job(tmp_path)).error
    assert error is not None and error.message == "OSError: disk full" and "Traceback" in error.traceback


def test_a_job_held_by_another_launch_is_left_to_it(
    stand_in: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("e2enet.system.locks.PATIENCE", 0.0)
    stand_in("raise SystemExit(1)")
    run_job(GIVEN, tmp_path)
    folder = only_job(tmp_path)
    stand_in(TRAINS)
    with claimed_folder(folder):
        assert run_job(GIVEN, tmp_path) is None and not (folder / "runs.txt").exists()
    assert "running elsewhere" in capsys.readouterr().out and job_state(folder).attempts == 1


def test_a_killed_launch_is_gone_on_with_and_its_time_kept(
    stand_in: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(GIVEN, tmp_path)
    folder = only_job(tmp_path)
    started = "2025-01-31T12:00:00+00:00"
    write_json(folder / "job.json", read_json(folder / "job.json") | {"state": "running", "started": started})
    assert job_state(folder).state == "interrupted"
    for path in folder.rglob("*"):
        os.utime(path, (1738324890, 1738324890))  # 90 seconds after that start
    before = read_json(folder / "job.json")["seconds"]
    assert run_job(GIVEN, tmp_path) == 0.5
    state = job_state(folder)
    assert state.attempts == 2 and 90 + before < state.seconds < 90 + before + 60
    assert f"{folder.name}: goes on" in capsys.readouterr().out


@pytest.mark.parametrize("end", [f"raise SystemExit({ExitCode.TERMINATED})", "os.kill(os.getpid(), 15)"])
def test_a_job_that_is_told_to_stop_is_interrupted(end: str, stand_in: Callable[[str], None], tmp_path: Path) -> None:
    stand_in(f"import os\n{end}")
    assert run_job(GIVEN, tmp_path) is None and job_state(only_job(tmp_path)).state == "interrupted"
    assert list_jobs(tmp_path, [only_job(tmp_path)]) == 1


def test_ctrl_c_ends_the_job_and_the_sweep(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    stand_in(
        "import os, time\nprint(os.getpid(), flush=True)\nopen('pid.txt', 'w').write(str(os.getpid()))\n"
        f"os.kill({os.getpid()}, {int(signal.SIGINT)})\ntime.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        run_job(GIVEN, tmp_path)
    folder = only_job(tmp_path)
    assert job_state(folder).state == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid.txt").read_text()), 0)


def test_ctrl_c_just_after_the_end_leaves_the_job_finished(
    stand_in: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, what: str) -> None:
        if what == "finished":
            raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "_say", interrupted)
    stand_in(TRAINS)
    with pytest.raises(KeyboardInterrupt):
        run_job(GIVEN, tmp_path)
    state = job_state(only_job(tmp_path))
    assert (state.state, state.score, state.attempts) == ("finished", 0.5, 1)


def test_what_differs_after_training_only_is_trained_once(
    stand_in: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job([*GIVEN, "final.mirror=true"], tmp_path)
    stand_in(
        "assert open('checkpoints/last.ckpt').read() == 'weights'" + TRAINS.replace('write_text("weights")', "touch()")
    )
    run_job([*GIVEN, "final.mirror=false"], tmp_path)
    first, second = (job.folder for job in read_sweep(tmp_path).jobs)
    assert f"{second.name}: takes the training of {first.name}" in capsys.readouterr().out
    assert job_state(second).state == "finished" and (second / "checkpoints" / "last.ckpt").read_text() == "weights"
    run_job([*GIVEN, "final.mirror=false", "seed=1"], tmp_path)
    assert job_state(read_sweep(tmp_path).jobs[2].folder).state == "crashed"  # another seed, another training


def test_wandb_knows_the_sweep_and_the_row(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    run_job([*GIVEN, "logger=wandb", "++seed=2", "++logger.wandb.tags=[mine]", f"paths.runs={tmp_path}"], tmp_path)
    logger = OmegaConf.load(only_job(tmp_path) / "config.yaml").logger
    assert (logger.wandb.group, logger.wandb.offline) == (tmp_path.name, True)
    assert logger.wandb.tags == ["mine", "fold=0", "seed=2", "data=phantom", "training=small", "name=sweep"]
    run_job([*GIVEN, "logger=wandb", "logger.wandb.group=ours", "seed=3"], tmp_path)
    assert OmegaConf.load(read_sweep(tmp_path).jobs[1].folder / "config.yaml").logger.wandb.group == "ours"


def test_a_score_that_is_none_is_none(stand_in: Callable[[str], None], tmp_path: Path) -> None:
    stand_in(
        "from e2enet.sweeps.inside import report_score\n"
        "report_score(float('nan'))\nimport os\nos.environ['RANK'] = '1'\nreport_score(0.5)"  # rank 1 reports nothing
    )
    assert run_job(GIVEN, tmp_path) is None
    content: dict[str, Any] = json.loads((only_job(tmp_path) / "job.json").read_text())
    assert content["state"] == "finished" and content["score"] is None


def test_stand_ins_are_what_jobs_would_run(tmp_path: Path) -> None:
    from e2enet.sweeps.process_group import job_command

    single = job_command(compose_config(["trainer=cpu"]), tmp_path / "it's")
    program = ["-m", "e2enet.commands.train"]
    assert single == [sys.executable, *program, f"resume='{tmp_path}/it\\'s'"]
    several = job_command(compose_config(["trainer=ddp", "trainer.devices=3"]), tmp_path)
    assert several[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
