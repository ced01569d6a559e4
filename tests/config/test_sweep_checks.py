"""What a sweep's command line is refused for before any job starts, and what is left to the machines of its jobs."""

from __future__ import annotations

import pytest

from e2enet.commands.train import main
from e2enet.sweeps.command_line import plan_sweep
from tests.config.conftest import problems

GIVEN = "training=small data=phantom trainer.probe=false"
ON_SLURM = f"-m {GIVEN} dsff.density=0.1,0.2 hydra/launcher=slurm hydra.launcher.partition=gpu"


def test_a_search_within_an_experiment() -> None:
    pytest.importorskip("optuna")
    (found,) = problems(f"-m {GIVEN} experiments=sparsity row=s80 hparams_search=optuna")
    assert found.startswith("experiments=sparsity: a search (hydra/sweeper=optuna) tries many settings, and a row")
    assert problems(f"-m {GIVEN} hparams_search=optuna") == []


@pytest.mark.parametrize(
    "more", ["trainer=gpu", "trainer=gpu training.precision=16-mixed", "training.precision=16-mixed"]
)
def test_jobs_on_other_machines_need_no_gpu_here(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setattr("e2enet.configuration.conflicts.has_gpu", lambda: False)
    line = f"{ON_SLURM} {more}"
    assert problems(line) == [] and len(plan_sweep(line.split()).jobs) == 2
    # Each job checks its config where it runs.
    assert problems(f"{GIVEN} {more}") != []


def test_what_no_machine_can_run_is_refused_here_all_the_same() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (found,) = problems(f"{ON_SLURM} trainer=gpu plan.kind=paper plan.patch_size=[100,128,128]")
    assert found.startswith(
        "plan.patch_size=[100, 128, 128]: the strides need multiples of [32, 32, 32], e.g. [96, 128"
    )


def test_the_paper_plans_strides_are_known_before_the_data() -> None:
    expected = "plan.patch_size=[100, 128, 128]: the strides need multiples of [32, 32, 32], e.g. [96, 128, 128]"
    assert problems("plan=paper training=paper trainer=cpu training.precision=32 plan.patch_size=[100,128,128]") == [
        expected
    ]


def test_scores_of_whole_cases_need_their_validation() -> None:
    (found,) = problems(f"{GIVEN} training.validate_full=null optimized_metric=val_full/dice")
    assert found == (
        "optimized_metric=val_full/dice: whole cases are never validated, since training.validate_full=null; expected "
        "a period of epochs there, or val/dice"
    )
    assert problems(f"{GIVEN} training.validate_full=0 optimized_metric=val/dice") == []


def test_a_sweep_is_not_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["train", "-m", "--cfg", "job", "seed=0,1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --cfg prints the config of one run: leave out -m\n"
