"""A sweep before it starts: rows, combinations, names, folders, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from e2enet.common.errors import InputError
from e2enet.runs.folders import read_sweep
from e2enet.data.cases.split_file import RunSplit
from e2enet.configuration.check import check_command_line
from e2enet.training.records import write_config
from e2enet.training.run_folder import write_claim
from e2enet.sweeps.command_line import plan_sweep
from e2enet.sweeps.manifest import register_jobs
from e2enet.runs.rows import ComposedJob, compose_job

# Rows from the command line. The files in experiments/ have their own tests.
ROWS = (
    "ablation={title:T,rows:{"
    "thin:{label:L,overrides:['dsff.density=0.1','optimizer.betas=[0.8,0.9]']},"
    "dense:{label:L,overrides:['dsff=dense']}}}"
)


def problems(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        check_command_line(arguments)
    return str(caught.value)


def test_a_rows_overrides_win_over_the_command_lines() -> None:
    job = compose_job(["++dsff.density=0.3", "dsff=rigl", ROWS, "row=thin"])
    assert job.config.dsff.density == 0.1 and job.config.dsff.growth == "gradient"
    assert list(job.config.optimizer.betas) == [0.8, 0.9]  # a key that the config lacks
    assert job.config.row == "thin" and "hydra" not in job.config
    assert compose_job(["dsff=rigl", ROWS, "row=dense"]).config.dsff.enabled is False  # a row may choose a group too
    assert compose_job(["dsff=rigl", ROWS]).config.dsff.density == 0.2  # without a row nothing is applied


def test_a_row_is_the_job_that_its_overrides_make() -> None:
    plain = compose_job(["dsff.density=0.1", "++optimizer.betas=[0.8,0.9]", "name=other"])
    assert compose_job([ROWS, "row=thin"]).key == plain.key != compose_job([ROWS, "row=dense"]).key
    mirrored = compose_job([ROWS, "row=thin", "final.mirror=false"])
    assert mirrored.key != plain.key and mirrored.training_key == plain.training_key


def test_mistakes_in_rows_are_told_with_their_row() -> None:
    wrong = ROWS.replace("density=0.1", "densty=0.1").replace("dsff=dense", "dsff=densee")
    text = problems("-m", wrong, "row=thin,dense")
    assert "row thin: dsff.densty: unknown key; did you mean dsff.density?" in text
    assert "row dense: " in text and "densee" in text
    assert "row=thn: the experiment has no such row; expected thin | dense" in problems(ROWS, "row=thn")
    assert "row=thin: rows belong to an experiment" in problems("row=thin")


def test_every_combination_in_hydras_order(tmp_path: Path) -> None:
    planned = plan_sweep(["-m", ROWS, "row=thin,dense", "seed=range(0,2)", f"paths.runs={tmp_path}", "name=x"])
    found = [(job.config.row, job.config.seed) for job in planned.jobs]
    assert found == [("thin", 0), ("thin", 1), ("dense", 0), ("dense", 1)]
    assert (planned.name, planned.folder) == ("x", tmp_path / "x")
    assert planned.arguments[0] == "-m" and "++seed=range(0,2)" in planned.arguments
    assert planned.arguments[-1] == f"hydra.sweep.dir='{tmp_path}/x'"


def test_an_experiments_own_values_are_replaced_not_multiplied() -> None:
    rows = OmegaConf.select(compose_job(["experiments=mechanisms"]).config, "ablation.rows")
    small = ["training=small", "data=phantom", "plan=auto"]
    assert [job.config.row for job in plan_sweep(["-m", "experiments=mechanisms", *small]).jobs] == list(rows)
    one = plan_sweep(["-m", "experiments=mechanisms", *small, f"row={list(rows)[1]}", "seed=0,1"])
    assert [(job.config.row, job.config.seed) for job in one.jobs] == [(list(rows)[1], 0), (list(rows)[1], 1)]
    assert one.jobs[0].experiment == "mechanisms" and one.folder == Path("runs/mechanisms").absolute()


@pytest.mark.slow
def test_more_combinations_than_the_check_composes_are_all_checked() -> None:
    values = "training.epochs=range(1,20)", "network.kernel_size=[1,3,3],[3,3,3]", "network.shift_size=null,3"
    with pytest.raises(InputError, match=r"the depth-shift belongs to kernel_size \[1,3,3\]"):
        plan_sweep(["-m", *values])


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["dsff.density=0.1,0.2", "run_folder={}/here"], "here"),
        (["dsff.density=0.1,0.2", "hydra.sweep.dir={}/it's, here"], "it's, here"),
        (["data=phantom,amos_ct", "name=both", "paths.runs={}"], "both"),
    ],
)
def test_the_sweeps_folder(arguments: list[str], folder: str, tmp_path: Path) -> None:
    given = [text.format(tmp_path) for text in arguments]
    given = [f'{text.split("=")[0]}="{text.split("=", 1)[1]}"' if "'" in text else text for text in given]
    assert plan_sweep(["-m", *given]).folder == tmp_path / folder


def test_refused_sweeps() -> None:
    with pytest.raises(InputError, match=r"different folders \(name=phantom, amos22\): give it one by name=TEXT"):
        plan_sweep(["-m", "data=phantom,amos_ct"])
    assert "experiments: one in a launch" in problems("-m", "experiments=mechanisms,schedules")
    nodes = problems("-m", "trainer.num_nodes=2", "seed=0,1")
    assert nodes.count("trainer.num_nodes=2: each job of a sweep runs on one machine") == 1
    assert "resume: continues one run" in problems("-m", "resume=folder")


def test_several_processes_are_no_reason_to_refuse() -> None:
    check_command_line(["-m", "trainer=ddp", "trainer.accelerator=cpu", "seed=0,1"])


def test_a_launcher_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_command_line(["-m", "hydra/launcher=joblib", "seed=0,1"])
    monkeypatch.setattr("e2enet.configuration.check.metadata.distributions", lambda name: iter(()))
    for launcher in ("joblib", "submitit_slurm", "slurm"):
        assert "needs the extra `launchers`" in problems("-m", f"hydra/launcher={launcher}", "seed=0,1")


def test_the_manifest_lists_jobs_before_they_run(tmp_path: Path) -> None:
    jobs = plan_sweep(["-m", ROWS, "row=thin,dense", "training.epochs=1,2", "seed=3"]).jobs
    folders = register_jobs(tmp_path, "test", jobs)
    assert [path.name.rsplit("-", 1)[0] for path in folders.values()] == [
        "thin-epochs_1-fold0-seed3",
        "thin-epochs_2-fold0-seed3",
        "dense-epochs_1-fold0-seed3",
        "dense-epochs_2-fold0-seed3",
    ]
    sweep = read_sweep(tmp_path)
    assert sweep.name == "test" and [job.key for job in sweep.jobs] == [job.key for job in jobs]
    assert all(job.folder.name.endswith(job.key[:8]) for job in sweep.jobs)
    assert sweep.jobs[0].overrides[1:] == ("row=thin", "training.epochs=1", "seed=3")
    before = (tmp_path / "sweep.json").read_text()
    assert register_jobs(tmp_path, "test", jobs) == folders and (tmp_path / "sweep.json").read_text() == before


def test_experiments_share_jobs_in_a_common_folder(tmp_path: Path) -> None:
    small = ["-m", "name=both", "training=small", "data=phantom", "seed=0"]
    first = plan_sweep([*small, "experiments=mechanisms", "row=dsff_shift"]).jobs
    second = plan_sweep([*small, "experiments=sparsity", "row=s70"]).jobs  # the same network in another table
    assert first[0].key == second[0].key
    register_jobs(tmp_path, "both", first)
    register_jobs(tmp_path, "both", second)
    lines = read_sweep(tmp_path).jobs
    assert [(job.experiment, job.row) for job in lines] == [("mechanisms", "dsff_shift"), ("sparsity", "s70")]
    assert lines[0].folder == lines[1].folder and list(read_sweep(tmp_path).ablations) == ["mechanisms", "sparsity"]


def test_other_settings_do_not_mix_with_started_jobs(tmp_path: Path) -> None:
    def jobs(epochs: int) -> tuple[ComposedJob, ...]:
        small = ["training=small", "data=phantom", "plan=auto", "row=dsff_shift", f"training.epochs={epochs}"]
        return plan_sweep(["-m", "experiments=mechanisms", *small]).jobs

    old, new = jobs(1), jobs(2)
    (folder,) = register_jobs(tmp_path, "m", old).values()
    register_jobs(tmp_path, "m", new)  # the old job was never started, so it is dropped
    assert [job.key for job in read_sweep(tmp_path).jobs] == [new[0].key]
    (folder,) = register_jobs(tmp_path, "m", old).values()
    write_config(folder / "config.yaml", old[0].config)  # as a launcher does before the job's process starts
    register_jobs(tmp_path, "m", new)  # without a claim it has not begun to train
    assert [job.key for job in read_sweep(tmp_path).jobs] == [new[0].key]
    register_jobs(tmp_path, "m", old)
    write_claim(folder, old[0].config, RunSplit(5, (), (), ()))
    with pytest.raises(InputError) as caught:
        register_jobs(tmp_path, "m", new)
    assert f"{folder.name}: training.epochs=2: the job has 1" in str(caught.value)
    assert [job["folder"] for job in json.loads((tmp_path / "sweep.json").read_text())["jobs"]] == [folder.name]


def test_a_started_sweep_goes_on_when_only_what_has_no_effect_changes(tmp_path: Path) -> None:
    def jobs(*more: str) -> tuple[ComposedJob, ...]:
        given = ["experiments=mechanisms", "row=dsff_shift", "data=msd", "data.name=Task09_Spleen", "plan=auto"]
        return plan_sweep(["-m", *given, "training=small", *more]).jobs

    old = jobs()
    (folder,) = register_jobs(tmp_path, "m", old).values()
    write_config(folder / "config.yaml", old[0].config)  # started
    facts = "data.facts={Task01_BrainTumour:{mirror_axes:[2]}}"
    same = jobs(facts, "data.augment_on=device", "training.compile=true")
    assert list(register_jobs(tmp_path, "m", same).values()) == [folder]
    # The manifest's key is from a version that included more settings. The started job's own config decides.
    content = json.loads((tmp_path / "sweep.json").read_text())
    content["jobs"][0] |= {"key": "f" * 64, "training_key": "f" * 64}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    assert list(register_jobs(tmp_path, "m", old).values()) == [folder]
    (job,) = read_sweep(tmp_path).jobs
    assert (job.key, job.training_key) == (old[0].key, old[0].training_key)
    facts = "data.facts={Task09_Spleen:{mirror_axes:[2]}}"
    assert jobs(facts)[0].key != old[0].key  # facts of this dataset decide its mirror axes
