"""Every mistake of a command line is reported, all at once, with what is allowed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from e2enet.common.config_check import target_parameters
from e2enet.common.config_rules import Rule
from e2enet.common.configs import compose_config, project_root
from e2enet.common.errors import InputError
from e2enet.common.overrides import force_added
from e2enet.configuration import conflicts
from e2enet.configuration.check import check_command_line
from e2enet.configuration.rules import RULES, TARGET_RULES
from e2enet.network import DSFF, E2ENet


def problems(line: str) -> list[str]:
    """The problem lines that a command line is refused with; [] where it is accepted."""
    try:
        check_command_line(line.split())
    except InputError as error:
        return [text.removeprefix("  - ") for text in str(error).splitlines()[1:]]
    return []


def test_all_mistakes_are_told_at_once() -> None:
    found = problems("dsff.densty=0.1 training.lrr=2 network.kernel_size=[2,3,3] dsff.density=7")
    assert len(found) == 4
    text = "\n".join(found)
    assert "dsff.densty: unknown key; did you mean dsff.density?" in text
    assert "training.lrr: unknown key; known here: accumulate, " in text
    assert "network.kernel_size=[2, 3, 3]: expected [1,3,3] | [3,1,3] | [3,3,1] | [3,3,3]" in text
    assert "dsff.density=7: expected a number in (0, 1]" in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fold=5", "fold=5: expected a whole number from 0 to 4, or all"),
        ("seed=1.5", "seed=1.5: expected a whole number from 0 to 4294967295"),
        ("seed=4294967296", "seed=4294967296: expected a whole number from 0 to 4294967295"),
        ("training.epochs=true", "training.epochs=True: expected a whole number >= 1"),
        ("data=msd", "data.name: needs a value"),
        (
            "data=nope",
            "data=nope: no such choice; expected amos_both | amos_ct | amos_mri | brats | btcv | msd | "
            "nnunet | phantom",
        ),
        ("experiments=missing", "experiments=missing: no such choice"),
        ("experiments=null", "experiments=null: no such choice"),
        ("dsff=rigll", "did you mean rigl?"),
        ("dsff=set,rigl", "dsff=set,rigl: one value expected for dsff; a list is written as [a,b]"),
        ("dsff=set,rigl", "several values start a sweep: add -m"),
        (
            "network.shift_size=3 network.kernel_size=[3,3,3]",
            "the depth-shift belongs to kernel_size [1,3,3]",
        ),
        ("network.fusion=unet", "use dsff=dense"),
        (
            "plan.patch_size=[16,30,32] plan.strides=[[1,2,2],[2,2,2]]",
            "multiples of [2, 4, 4], e.g. [16, 32, 32]",
        ),
        ("dsff.density=1", "use dsff=dense"),
        ("dsff.granularity=groups", "dsff.granularity=groups: expected kernel | group"),
        ("dsff.granularity=group dsff.group_size=12", "dsff.group_size=12: expected 8 | 16 | 32"),
        ("dsff.group_size=16.0", "dsff.group_size=16.0: expected 8 | 16 | 32"),
        ("training.validate_full=-1", "training.validate_full=-1: expected null or a whole number >= 0"),
        ("training.precision=16-mixed trainer.accelerator=cpu", "needs a GPU"),
        ("training.accumulate=26", "an epoch has training.steps_per_epoch=25 batches, and a step is of one epoch's"),
        ("final.compact=1", "final.compact=1: expected true | false"),
        ("training.checkpoint_activations=1", "training.checkpoint_activations=1: expected true | false"),
        *(
            (
                f"training.checkpoint_activations=true network={name} dsff=dense",
                f"training.checkpoint_activations=true: {name} keeps its activations; expected false, or "
                "network=e2enet",
            )
            for name in ("plain_unet", "dynunet", "swin_unetr")
        ),
        ("training.engine=fast", "training.engine=fast: expected auto | dense | sparse"),
        ("training.engine=sparse network=plain_unet dsff=dense", "training.engine=sparse: plain_unet is no E2ENet"),
        ("training.engine=sparse training.compile=true", "training.compile=true compiles torch's own pass; expected"),
        ("training.engine=sparse training.checkpoint_activations=true", "recomputes torch's own pass; expected"),
        ("training.optimizer._target_=torch.optim.Adamm", "cannot be imported"),
        ("training.optimizer.momentum=0.9", "training.optimizer.momentum: unknown key"),
        (
            "training.schedule._target_=torch.optim.lr_scheduler.StepLR",
            "training.schedule.step_size: needs a value",
        ),
        (
            "training.schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau ~training.schedule.warmup",
            "training.schedule: torch.optim.lr_scheduler.ReduceLROnPlateau cannot be used (TypeError: ",
        ),
        ("training.optimizer._partial_=true", "training.optimizer._partial_=True: expected false"),
        ("training.loss._convert_=some", "training.loss._convert_=some: expected none | partial | object | all"),
        (
            "training.loss={_target_:monai.losses.DiceLoss,softmax:true,to_onehot_y:true} ~training.loss.smooth",
            "training.loss: monai.losses.DiceLoss cannot be used (",
        ),
        (
            "training.loss={_target_:torch.nn.Identity} ~training.loss.smooth",
            "training.loss: torch.nn.Identity cannot be used (TypeError: ",
        ),
        (
            "training.loss={_target_:torch.nn.CrossEntropyLoss,reduction:none} ~training.loss.smooth",
            "torch.nn.CrossEntropyLoss cannot be used (RuntimeError: stack expects each tensor to be equal size",
        ),
        ("training.optimizer={_target_:torch.optim.Muon}", "training.optimizer: torch.optim.Muon cannot be used ("),
        (
            "training.optimizer={_target_:torch.optim.SparseAdam} ~training.optimizer.weight_decay",
            "training.optimizer: torch.optim.SparseAdam cannot be used (",
        ),
        ("network._target_=monai.networks.nets.SegResNet", "network._target_: network is chosen by its name; expected"),
        ("data.numworkers=1", "data.numworkers: unknown key; did you mean data.num_workers?"),
        ("~dsff.density", "dsff.density: is missing"),
        ("~training.loss ~training.schedule", "training.loss: is missing"),
        ("~logger logger.wandb=true ~paths", "paths: is missing"),
        ("training.optimizer=null", "training.optimizer=null: expected a section, with keys of its own"),
        ("final=3", "final=3: expected a section, with keys of its own"),
        ("~training.loss._target_", "training.loss._target_: needs a value, the class or function that is built"),
        ("-m fold=glob(*)", "fold=glob(*): patterns of choices are not read; expected the choices, with commas"),
        ("-m dsff=glob(*)", "dsff=glob(*): patterns of choices are not read; expected the choices, with commas"),
        (  # 25 batches an epoch
            "training.schedule={_target_:torch.optim.lr_scheduler.OneCycleLR,max_lr:0.1,total_steps:269,interval:step} "
            "~training.schedule.warmup training.epochs=30 training.accumulate=3",
            "The specified number of total steps is 269); expected a schedule for a run of 270 steps, which",
        ),
        (
            "dsff.density=${nothing}",
            "dsff.density=${nothing}: cannot be resolved (Interpolation key 'nothing' not found",
        ),
        (
            "run_folder=${env:HOME}/run",
            "run_folder=${env:HOME}/run: cannot be resolved (Unsupported interpolation type",
        ),
        ("plan.patch_size=[${a},16,16]", "plan.patch_size=['${a}', 16, 16]: cannot be resolved"),
        ("stray", "stray: expected key=value"),
        ("training.optimizer.lr=interval(0.001,0.01)", "needs a sweeper that draws values from intervals"),
        ("-m training.optimizer.lr=interval(0.001,0.01)", "needs a sweeper that draws values from intervals"),
        ("-m hydra/sweeper=optuna training.optimizer.lr=interval(-1,0.01)", "training.optimizer.lr=-1.0: expected a"),
        ("-m dsff.density=0.1,3", "dsff.density=3"),
        ("-m resume=folder", "resume: continues one run"),
        ("-m experiments=sparsity training=small dsff.start=x", "row s90: dsff.start=x: expected uniform | erk"),
        ("-m dsff=set,nope", "dsff=nope: no such choice"),
    ],
)
def test_mistakes(line: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(line)), problems(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "dsff.density_by_dim0={48:0.2} data.mirror_axes=[] plan.spacing=[3,1,1]",
        "data=msd data.name=Task04_Hippocampus training=hippocampus fold=all",
        "training.optimizer._target_=torch.optim.SGD training.optimizer.momentum=0.9",
        "training.loss={_target_:torch.nn.CrossEntropyLoss,label_smoothing:0.1} ~training.loss.smooth",
        "training.optimizer._target_=torch.optim.LBFGS ~training.optimizer.weight_decay",
        "training.schedule={_target_:torch.optim.lr_scheduler.OneCycleLR,max_lr:0.1,total_steps:270,interval:step} "
        "~training.schedule.warmup training.epochs=30 training.accumulate=3",
        "training.loss={_target_:torch.nn.CrossEntropyLoss,weight:{_target_:torch.tensor,data:[1.0,2.0]}} "
        "~training.loss.smooth",
        "dsff=rigl dsff.granularity=group dsff.group_size=32 dsff.start=erk",
        "network=unet debug=one_batch",
        "network=unet training.checkpoint_activations=true training.compile=true",
        "-m dsff.density=0.1,0.2 dsff=set,rigl",
        "-m hydra/sweeper=optuna training.optimizer.lr=interval(0.001,0.01) dsff.density=choice(0.1,0.2)",
        "--config-name config seed=1",
        "-m seed=range(0,20) dsff=set,rigl",
    ],
)
def test_sound_command_lines_pass(line: str) -> None:
    assert problems(line) == []


def test_what_lacks_as_a_whole_is_told_once() -> None:
    assert problems("~logger ~training.loss final=null") == [
        "final=null: expected a section, with keys of its own",
        "logger: is missing",
        "training.loss: is missing",
    ]


def test_experiments_bring_their_own_sweep() -> None:
    config = compose_config(["experiments=sparsity"], with_hydra=True)
    assert dict(config.hydra.sweeper.params) == {"row": "s90,s80,s70,s50,s00"}


def test_values_are_forced_in_after_the_check() -> None:
    given = ["-m", "dsff=set,rigl", "seed=1", "~training.clip_norm", "hydra.verbose=true", "+x.y=1"]
    assert force_added(given) == ["-m", "dsff=set,rigl", "++seed=1", *given[3:]]


def test_target_parameters() -> None:
    def target(a: int, *, b: int = 0, **others: int) -> None: ...

    assert target_parameters(target) == (["a", "b"], ["a"], True)
    assert target_parameters(torch.optim.SGD)[1] == ["params"]


@pytest.mark.parametrize(("section", "rules", "target"), [("network", TARGET_RULES, E2ENet), ("dsff", RULES, DSFF)])
def test_the_sections_are_the_parameters_of_what_they_build(
    section: str, rules: dict[str, Rule], target: Callable
) -> None:
    ruled = {path.split(".")[1] for path in rules if path.startswith(f"{section}.")}
    parameters = set(inspect.signature(target).parameters)
    assert ruled - {"masks"} == parameters - {"in_channels", "num_classes", "strides", "seed"}


def test_a_hippocampus_is_mirrored_left_right_only() -> None:
    def axes(name: str, *more: str) -> list[int]:
        config = compose_config(["data=msd", f"data.name={name}", *more])
        return OmegaConf.to_container(config, resolve=True)["data"]["mirror_axes"]  # type: ignore[index,call-overload,return-value]

    assert axes("Task04_Hippocampus") == [1]
    assert axes("Task09_Spleen") == [0, 1, 2]
    assert axes("Task04_Hippocampus", "data.mirror_axes=[2]") == [2]


def test_a_wrong_interpolation_hides_nothing() -> None:
    found = problems("dsff.density=${nothing} training.epochs=0 name=${now}")
    assert len(found) == 3 and any("training.epochs=0: expected" in problem for problem in found)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["data=msd"], []),  # values may be missing where the config is only printed
        (["trainer.accelerator=gpu"], []),
        (["training.optimizer._target_=torch.optim.SGD", "training.optimizer.momentum=0.9"], []),
        (["dsff.densty=0.1"], ["dsff.densty: unknown key; did you mean dsff.density?"]),
    ],
)
def test_a_config_that_is_printed(more: list[str], expected: list[str]) -> None:
    try:
        check_command_line(["--cfg", "job", *more], printed=True)
        found = []
    except InputError as error:
        found = [text.removeprefix("  - ") for text in str(error).splitlines()[1:]]
    assert found == expected


def test_it_is_printed_with_keys_that_the_defaults_lack(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["training.optimizer._target_=torch.optim.SGD", "training.optimizer.momentum=0.9", "data=msd"]
    done = subprocess.run(
        [sys.executable, "train.py", "--cfg", "job", *given], cwd=project_root(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert OmegaConf.create(done.stdout).training.optimizer.momentum == 0.9


@pytest.mark.parametrize("key", ["paths.data", "paths.prepared", "paths.runs", "run_folder"])
def test_a_file_in_the_place_of_a_folder(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert problems(f"{key}={place}") == [f"{key}={place}: {tmp_path}/file is a file; a folder expected"]


@pytest.mark.parametrize("key", ["paths.prepared", "paths.runs", "run_folder"])
def test_a_folder_that_cannot_be_written_to(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    found = f"{key}={tmp_path}/new: {tmp_path} cannot be written to; the permission to write expected"
    assert problems(f"{key}={tmp_path}/new") == [found]


@pytest.mark.parametrize(("logged_in", "mode"), [(False, None), (True, None), (False, "offline")])
def test_online_needs_a_login_before_anything_starts(
    logged_in: bool, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    conflicts._login_problem.cache_clear()
    monkeypatch.setattr("wandb.login", lambda prompt: logged_in)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    expected = "logger.offline=false: this machine is not logged in to Weights & Biases; expected logger.offline=true, "
    found = problems("logger=wandb logger.offline=false")
    assert found == ([] if logged_in or mode else [f"{expected}or `wandb login`"])
    conflicts._login_problem.cache_clear()
