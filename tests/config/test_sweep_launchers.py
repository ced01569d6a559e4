"""Real sweeps of tiny networks: killed and relaunched, in two processes, and as SLURM would run them."""

from __future__ import annotations

import csv
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from e2enet.common.configs import ROOT
from e2enet.common.files import read_json
from e2enet.runs.folders import SweepJob, job_state, read_sweep
from e2enet.training.loggers import last_logged

# Stand-in for sbatch: keeps a copy of the submitted file and runs the array's tasks in the background.
SBATCH = """#!{python}
import os, re, shutil, subprocess, sys
kept = os.path.join({folder!r}, "submitted.sh")
shutil.copyfile(sys.argv[-1], kept)
text = open(kept).read()
print("Submitted batch job 4711", flush=True)
for task in range(int(re.search(r"--array=0-(\\d+)", text)[1]) + 1):
    numbers = dict(SLURM_JOB_ID=str(4712 + task), SLURM_ARRAY_JOB_ID="4711", SLURM_ARRAY_TASK_ID=str(task))
    numbers |= dict(SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_JOB_NUM_NODES="1")
    log = open(os.path.join({folder!r}, f"task{{task}}.log"), "w")
    command = ["bash", kept]
    subprocess.Popen(command, env=os.environ | numbers, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"; echo "4711_0|RUNNING|node"; echo "4711_1|RUNNING|node"
"""


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "train.py", "-m", *arguments]


def launch(arguments: list[str], **environment: str) -> str:
    """Run a sweep to its end and return its output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command(arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def epochs(job: SweepJob) -> list[int]:
    with (job.folder / "metrics.csv").open() as stream:
        return [int(row["epoch"]) for row in csv.DictReader(stream) if row["val/dice"]]


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(tiny: list[str], tmp_path: Path) -> None:
    arguments = [
        *tiny,
        "training.epochs=3",
        "training.checkpoint_every=1",
        "training.checkpoint_unit=epochs",
        "dsff.density=0.1,0.2",
        f"run_folder={tmp_path}/sweep",
        "final.predict=false",
    ]
    launcher = subprocess.Popen(
        command(arguments),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if "epoch 2/3" in line:  # last.ckpt holds at least one epoch
            launcher.kill()
            break
    launcher.wait()
    launcher.stdout.close()
    first, second = read_sweep(tmp_path / "sweep").jobs
    assert (job_state(first.folder).state, job_state(second.folder).state) == ("interrupted", "pending")
    output = launch(arguments)
    assert f"{first.folder.name}: goes on" in output and f"{second.folder.name}: starts" in output
    assert f"{first.folder.name} | epoch 1/3" not in output and f"{first.folder.name} | epoch 3/3" in output
    densities = [read_json(job.folder / "cost.json")["density"] for job in (first, second)]
    assert densities == pytest.approx([0.1, 0.2], abs=0.02)
    assert [epochs(job) for job in (first, second)] == [[0, 1, 2], [0, 1, 2]]
    assert [job_state(job.folder).attempts for job in (first, second)] == [2, 1]
    again = launch(arguments)
    assert again.count("finished already") == 2 and " | " not in again


@pytest.mark.slow
def test_joblib_runs_rows_in_two_processes(tiny: list[str], tmp_path: Path) -> None:
    rows = ["experiments=mechanisms", "row=dsff_only,neither", "data=phantom", "plan=auto", "training=small"]
    processes = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    output = launch([*rows, *tiny, *processes, f"run_folder={tmp_path}/sweep", "seed=3"])
    jobs = read_sweep(tmp_path / "sweep").jobs
    states = [job_state(job.folder) for job in jobs]
    assert [(job.row, state.state) for job, state in zip(jobs, states, strict=True)] == [
        ("dsff_only", "finished"),
        ("neither", "finished"),
    ]
    assert states[0].pid != states[1].pid and all(f"{job.folder.name} | epoch 1/1" in output for job in jobs)
    assert output.rstrip().endswith("2 jobs: 2 finished")


@pytest.mark.slow
def test_a_job_of_two_processes_leaves_the_next_alone(tiny: list[str], tmp_path: Path) -> None:
    processes = ["trainer.devices=2,1", "data.num_train=6"]
    output = launch([*tiny, *processes, f"run_folder={tmp_path}/sweep", "final.predict=false", "training.epochs=2"])
    pair, single = read_sweep(tmp_path / "sweep").jobs
    assert output.count("MEMBER: ") == 2 and f"{pair.folder.name} | epoch 2/2" in output
    assert [job_state(job.folder).state for job in (pair, single)] == ["finished", "finished"]
    assert [epochs(job) for job in (pair, single)] == [[0, 1], [0, 1]]


@pytest.mark.slow
def test_slurm_gets_an_array_of_jobs_and_can_run_it(tiny: list[str], tmp_path: Path) -> None:
    programs = {"sbatch": SBATCH.format(python=sys.executable, folder=str(tmp_path)), "srun": SRUN, "sacct": SACCT}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    cluster = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=90"]
    arguments = [*tiny, *cluster, "seed=4,5", f"run_folder={tmp_path}/sweep", "final.predict=false", "name=onslurm"]
    launch(arguments, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    lines = (tmp_path / "submitted.sh").read_text().splitlines()
    wanted = {
        "--partition=gpu",
        "--time=90",
        "--array=0-1%2",
        "--gpus-per-node=1",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--mem=32GB",
        "--signal=USR2@120",
        "--job-name=onslurm",
        "--open-mode=append",
    }
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines}
    task = lines[-1] if lines[-1].startswith("srun") else next(line for line in lines if line.startswith("srun"))
    assert task.endswith(f"-u -m submitit.core._submit {tmp_path}/sweep/.submitit/%j") and sys.executable in task
    states = [job_state(job.folder) for job in read_sweep(tmp_path / "sweep").jobs]
    assert [state.state for state in states] == ["finished", "finished"] and states[0].pid != states[1].pid


@pytest.mark.slow
def test_a_crash_does_not_stop_the_others_and_is_listed_last(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, "data.limit_cases=99,1", f"run_folder={tmp_path}/sweep", "final.predict=false"]
    done = subprocess.run(command(arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)
    bad, good = read_sweep(tmp_path / "sweep").jobs
    assert done.returncode == 1 and job_state(good.folder).state == "finished"
    tail = done.stdout.splitlines()[-4:]
    assert tail[0].endswith("2 jobs: 1 finished, 1 crashed")
    assert (
        tail[1].startswith(f"  crashed {bad.folder.name}: limit_cases=99, but fold 0")
        and "Traceback" not in done.stdout
    )


@pytest.mark.parametrize("name", ["multirun.yaml", "train.log"])
def test_hydras_own_files_do_not_look_like_jobs(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    assert [job.folder.name for job in read_sweep(tmp_path).jobs] == ["run"]


@pytest.mark.slow
def test_optuna_chooses_values_from_an_interval(tiny: list[str], tmp_path: Path) -> None:
    """Two jobs of the group hparams_search, drawn by the sampler's seed. Optuna receives the metric of each."""
    sweep = tmp_path / "runs" / "search"
    options = ["hparams_search=optuna", "hydra.sweeper.n_trials=2", "optimized_metric=train/loss"]
    values = ["optimizer.lr=interval(0.001,0.01)", "hydra.sweeper.sampler.seed=1", "final.predict=false"]
    output = launch(
        [*tiny, *options, *values, "name=search", "hydra.sweeper.direction=minimize", "trainer.probe=false"]
    )
    jobs = read_sweep(sweep).jobs
    assert len(jobs) == 2 and f"{sweep}: 2 jobs: 2 finished" in output
    rates = [OmegaConf.load(job.folder / "config.yaml").optimizer.lr for job in jobs]
    assert rates[0] != rates[1] and all(0.001 <= rate <= 0.01 for rate in rates)
    found = OmegaConf.load(sweep / "optimization_results.yaml")
    losses = [last_logged(job.folder, "train/loss") for job in jobs]
    assert found.best_value == min(losses) and [job_state(job.folder).score for job in jobs] == losses
    assert found.best_params["optimizer.lr"] == rates[losses.index(found.best_value)]
    assert found.best_params["dsff.density"] in (0.1, 0.2, 0.3)  # the values of the group
