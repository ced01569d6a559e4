"""All mistakes of a command line are reported at once, with the allowed values."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from e2enet.common.config_check import Part
from e2enet.common.configs import ROOT, compose_config
from e2enet.common.errors import InputError
from e2enet.common.overrides import force_added
from e2enet.configuration.check import check_command_line
from e2enet.configuration.rules import DSFF as DSFF_PART
from e2enet.configuration.rules import NETWORK
from e2enet.network import DSFF, E2ENet
from tests.config.conftest import problems

OTHERS = {
    "plain_unet": "e2enet.network.baselines.PlainUNet",
    "dynunet": "e2enet.network.baselines.DynUNet",
    "swin_unetr": "e2enet.network.baselines.SwinUNETR",
}


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
            "data=nope: no such choice; expected acdc | amos_both | amos_ct | amos_mri | brats | brats_2020 | "
            "brats_2021 | brats_2023 | btcv | folders | kits | msd | nnunet | phantom",
        ),
        ("experiments=missing", "experiments=missing: no such choice"),
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
        ("dsff.density_initial=0.1", "dsff.density_initial=0.1: less than dsff.density=0.2"),
        (
            "dsff.update_every=0.125",
            "dsff.update_every=0.125: expected a whole number >= 1, since dsff.update_unit=steps; a share of the run: "
            "dsff.update_unit=run",
        ),
        (
            "dsff.regrown_warmup=51",
            "dsff.regrown_warmup=51: more steps than from one update to the next, dsff.update_every=50",
        ),
        (
            "callbacks=early_stopping training.validate_every=2",
            "callbacks.early_stopping: it reads val/dice after every epoch, and training.validate_every=2 measures it "
            "less often; expected training.validate_every=1",
        ),
        ("dsff.update_unit=run", "dsff.update_every=50: expected a share in (0, 1], since dsff.update_unit=run"),
        ("dsff.granularity=group dsff.group_size=8 dsff.prune_over=network", "needs dsff.granularity=kernel"),
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
                f"training.checkpoint_activations=true network={network} dsff=dense",
                f"training.checkpoint_activations=true: {name} keeps its activations; expected false, or "
                "network=e2enet",
            )
            for network, name in OTHERS.items()
        ),
        ("training.engine=fast", "training.engine=fast: expected auto | dense | sparse"),
        (
            "training.engine=sparse network=dynunet dsff=dense",
            "e2enet.network.baselines.DynUNet is no E2ENet; expected",
        ),
        ("training.engine=sparse training.compile=true", "training.compile=true compiles torch's own pass; expected"),
        ("training.engine=sparse training.checkpoint_activations=true", "recomputes torch's own pass; expected"),
        ("optimizer._target_=torch.optim.Adamm", "cannot be imported"),
        ("optimizer.momentum=0.9", "optimizer.momentum: unknown key"),
        (
            "schedule._target_=torch.optim.lr_scheduler.StepLR",
            "schedule.step_size: needs a value",
        ),
        (
            "schedule=plateau ~schedule.monitor",
            "schedule: torch.optim.lr_scheduler.ReduceLROnPlateau cannot be used (TypeError: ",
        ),
        ("schedule=plateau schedule.mode=most", "schedule.mode=most: expected min | max"),
        ("optimizer._partial_=true", "optimizer._partial_=True: expected false"),
        ("loss._convert_=some", "loss._convert_=some: expected none | partial | object | all"),
        (
            "loss={_target_:monai.losses.DiceLoss,softmax:true} ~loss.smooth",
            "loss: monai.losses.DiceLoss cannot be used (",
        ),
        (
            "loss={_target_:torch.nn.Identity} ~loss.smooth",
            "loss: torch.nn.Identity cannot be used (TypeError: ",
        ),
        (
            "loss={_target_:torch.nn.CrossEntropyLoss,reduction:none} ~loss.smooth",
            "torch.nn.CrossEntropyLoss cannot be used (RuntimeError: stack expects each tensor to be equal size",
        ),
        pytest.param(
            "optimizer={_target_:torch.optim.Muon}",
            "optimizer: torch.optim.Muon cannot be used (",
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this version of torch has no Muon"),
        ),
        (
            "optimizer={_target_:torch.optim.SparseAdam} ~optimizer.weight_decay",
            "optimizer: torch.optim.SparseAdam cannot be used (",
        ),
        ("network._target_=monai.networks.nets.SegResNet", "network.base_features: unknown key; "),
        ("network=swin_unetr dsff.enabled=true", "SwinUNETR has no fusion layers to mask; use dsff=dense"),
        ("network.strides=[[2,2,2]]", "network.strides: is set by the plan (plan.strides, plan.patch_size)"),
        ("network.in_channels=3", "network.in_channels: unknown key"),
        ("trainer.max_epochs=3", "trainer.max_epochs: is set by training.epochs"),
        ("trainer.callbacks=[]", "trainer.callbacks: is set by the group callbacks"),
        (
            "trainer.limit_train_batches=many",
            "trainer.limit_train_batches=many: expected a number or null",
        ),
        ("trainer.max_tim=1", "trainer.max_tim: unknown key; did you mean trainer.max_time?"),
        ("trainer.devices=0", "trainer.devices=0: expected a whole number >= 1, -1 or auto"),
        ("trainer.devices=[0,0]", "trainer.devices=[0, 0]: expected"),
        ("trainer.accelerator=mps", "trainer: Lightning refuses it ("),
        ("trainer.strategy=nothing", "trainer: Lightning refuses it ("),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp: gives each process a part of the weights, and DSFF masks"),
        ("training.precision=8", "training.precision=8: expected auto | 32 | 32-true | bf16-mixed | 16-mixed | 64"),
        ("callbacks=[default,early]", "callbacks=early: no such choice; expected default"),
        ("callbacks.mine={_target_:nowhere.Mine}", "callbacks.mine._target_: nowhere.Mine cannot be imported"),
        (
            "callbacks.mine={_target_:lightning.pytorch.callbacks.EarlyStopping}",
            "callbacks.mine.monitor: needs a value",
        ),
        ("trainer.devices=[0] trainer.accelerator=cpu", "trainer: Lightning refuses it (`devices` selected with"),
        ("dsff=dense trainer.strategy=fsdp", "trainer: Lightning refuses it (The strategy `fsdp` requires a GPU"),
        ("callbacks.mine=3", "callbacks.mine=3: expected a section with _target_, or null"),
        ("logger=mlflow", "logger.mlflow: MLFlowLogger needs the package mlflow"),
        ("logger.wandb=true", "logger.wandb=True: expected a section with _target_, or null"),
        ("dsff.growth=fast", "dsff.growth=fast: expected random | gradient"),
        ("data.numworkers=1", "data.numworkers: unknown key; did you mean data.num_workers?"),
        ("~loss ~schedule", "loss: is missing"),
        ("~logger ~paths", "paths: is missing"),
        ("optimizer=null", "optimizer=null: no such choice; expected adamw | sgd"),
        ("experiments=null", "experiments=null: no such choice"),
        ("final=3", "final=3: expected a section, with keys of its own"),
        ("~loss._target_", "loss._target_: needs a value, the class or function that is built"),
        ("-m fold=glob(*)", "fold=glob(*): patterns of choices are not read; expected the choices, with commas"),
        ("-m dsff=glob(*)", "dsff=glob(*): patterns of choices are not read; expected the choices, with commas"),
        (  # 25 batches per epoch
            "schedule={_target_:torch.optim.lr_scheduler.OneCycleLR,max_lr:0.1,total_steps:269,interval:step} "
            "~schedule.warmup training.epochs=30 training.accumulate=3",
            "The specified number of total steps is 269); expected a schedule for a run of 270 steps, by",
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
        ("optimizer.lr=interval(0.001,0.01)", "needs a sweeper that draws values from intervals"),
        ("-m optimizer.lr=interval(0.001,0.01)", "needs a sweeper that draws values from intervals"),
        ("-m hydra/sweeper=optuna optimizer.lr=interval(-1,0.01)", "optimizer.lr=-1.0: expected a"),
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
        "optimizer._target_=torch.optim.SGD optimizer.momentum=0.9",
        "loss={_target_:torch.nn.CrossEntropyLoss,label_smoothing:0.1} ~loss.smooth",
        "optimizer._target_=torch.optim.LBFGS ~optimizer.weight_decay",
        "schedule={_target_:torch.optim.lr_scheduler.OneCycleLR,max_lr:0.1,total_steps:270,interval:step} "
        "~schedule.warmup training.epochs=30 training.accumulate=3",
        "loss={_target_:torch.nn.CrossEntropyLoss,weight:{_target_:torch.tensor,data:[1.0,2.0]}} ~loss.smooth",
        "dsff=rigl dsff.granularity=group dsff.group_size=32 dsff.start=erk",
        "network=unet debug=one_batch",
        "loss={_target_:monai.losses.DiceCELoss,softmax:true,to_onehot_y:true} ~loss.smooth",
        "schedule=plateau callbacks=[default,early_stopping,lr_monitor] callbacks.validation_picture=null",
        "~dsff.density",
        "trainer.max_time=00:12:00:00 trainer.limit_train_batches=3 trainer.limit_val_batches=0.5",
        "trainer.gradient_clip_algorithm=value trainer.fast_dev_run=true trainer.profiler=simple",
        "training.precision=32-true",
        "training.precision=64",
        "network=unet training.checkpoint_activations=true training.compile=true",
        "-m dsff.density=0.1,0.2 dsff=set,rigl",
        "-m hydra/sweeper=optuna optimizer.lr=interval(0.001,0.01) dsff.density=choice(0.1,0.2)",
        "--config-name config seed=1",
        "-m seed=range(0,20) dsff=set,rigl",
    ],
)
def test_sound_command_lines_pass(line: str) -> None:
    assert problems(line) == []


def test_what_lacks_as_a_whole_is_told_once() -> None:
    assert problems("~logger ~loss final=null") == [
        "final=null: expected a section, with keys of its own",
        "loss: is missing",
    ]


def test_experiments_bring_their_own_sweep() -> None:
    config = compose_config(["experiments=sparsity"], with_hydra=True)
    assert dict(config.hydra.sweeper.params) == {"row": "s90,s80,s70,s50,s00"}


def test_values_are_forced_in_after_the_check() -> None:
    given = ["-m", "dsff=set,rigl", "seed=1", "~training.clip_norm", "hydra.verbose=true", "+x.y=1"]
    assert force_added(given) == ["-m", "dsff=set,rigl", "++seed=1", *given[3:]]


@pytest.mark.parametrize(("part", "target"), [(NETWORK, E2ENet), (DSFF_PART, DSFF)], ids=["network", "dsff"])
def test_rules_are_of_parameters_that_there_are(part: Part, target: Callable[..., Any]) -> None:
    parameters = set(inspect.signature(target).parameters)
    assert set(part.rules) <= parameters and not set(part.extras) & parameters


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
        (["data=msd"], []),  # values may be missing if the config is only printed
        (["trainer.accelerator=gpu"], []),
        (["optimizer._target_=torch.optim.SGD", "optimizer.momentum=0.9"], []),
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
    given = ["optimizer._target_=torch.optim.SGD", "optimizer.momentum=0.9", "data=msd"]
    done = subprocess.run(
        [sys.executable, "train.py", "--cfg", "job", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert OmegaConf.create(done.stdout).optimizer.momentum == 0.9
