"""Every config value reaches the place where it acts: trainer, callbacks, data module, module, network, optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from e2enet import network
from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.inference.checkpoint import LoadedModel
from e2enet.network.dsff import fusion_layers
from e2enet.network.recompute import run_once
from e2enet.training import final, run
from e2enet.training.checkpoints import BestCheckpoint, KeptCheckpoints, LastCheckpoint
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.losses import DiceCrossEntropy
from e2enet.training.module import SegmentationModule
from e2enet.training.parts import read_parts
from e2enet.training.run import run_training
from e2enet.training.timing import TimeKeeper


@dataclass
class Parts:
    """The objects with which a run would train."""

    trainer: pl.Trainer
    module: SegmentationModule
    data: Any
    identity: Mapping[str, Any]
    probed: bool

    def callback(self, kind: type[Any]) -> Any:
        return next(callback for callback in self.trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]

    @property
    def optimizer(self) -> Any:
        return self.optimizers["optimizer"]

    @property
    def schedule(self) -> Any:
        return self.optimizers["lr_scheduler"]["scheduler"]

    @property
    def optimizers(self) -> Any:
        self.module.trainer = self.trainer
        return self.module.configure_optimizers()


class OwnDSFF(network.DSFF):
    """What a section `dsff` of one's own names."""


# Key, a value other than the default, and where it is found. Sections with a `_target_` are checked after building.
Line = tuple[str, Any, Callable[[Parts], Any]]
DATA: list[Line] = [
    ("data.name", "wired", lambda parts: parts.data.source.folder.name.rpartition("_")[0]),
    ("data.num_train", 6, lambda parts: parts.data.source.layout.settings["num_train"]),
    ("data.num_test", 1, lambda parts: parts.data.source.layout.settings["num_test"]),
    ("data.shape", [40, 40, 16], lambda parts: list(parts.data.source.layout.settings["shape"])),
    ("data.spacing", [1.0, 1.0, 2.0], lambda parts: list(parts.data.source.layout.settings["spacing"])),
    ("data.phantom_seed", 5, lambda parts: parts.data.source.layout.settings["seed"]),
    ("data.mirror_axes", [2], lambda parts: list(parts.data.mirror_axes)),
    ("data.mirror_axes", [2], lambda parts: list(parts.module.hparams["dataset"]["mirror_axes"])),
    ("augmentation.noise.p", 0.3, lambda parts: parts.data._recipe().steps["noise"].p),
    ("augmentation.noise.deviation", [0.1, 0.2], lambda parts: list(parts.data._recipe().steps["noise"].deviation)),
    ("augmentation.blur.strength", [0.1, 0.2], lambda parts: list(parts.data._recipe().steps["blur"].strength)),
    ("augmentation.blur.channel_p", 0.3, lambda parts: parts.data._recipe().steps["blur"].channel_p),
    ("augmentation.spatial.rotation_p", 0.6, lambda parts: parts.data._recipe().steps["spatial"].rotation_p),
    ("augmentation.spatial.scale", [0.5, 2.0], lambda parts: list(parts.data._recipe().steps["spatial"].scale)),
    ("augmentation.spatial.degrees", 12.0, lambda parts: parts.data._recipe().steps["spatial"].degrees),
    ("augmentation.mirror.p", 0.25, lambda parts: parts.data._recipe().steps["mirror"].p),
    ("data.augment_on", "device", lambda parts: parts.data.augment_on),
    ("data.sampler.foreground_share", 0.6, lambda parts: parts.data.sampler.foreground_share),
    ("data.sampler.class_weights", {"tube": 2.0}, lambda parts: {"tube": parts.data.sampler.class_weights[3]}),
    ("data.num_workers", 1, lambda parts: parts.data.num_workers),
    ("data.prepare_workers", 1, lambda parts: parts.data.prepare_workers),
    ("data.limit_cases", 3, lambda parts: parts.data.choice.limit),
    ("plan.spacing", [2.0, 1.5, 1.5], lambda parts: list(parts.module.plan.spacing)),
    ("plan.patch_size", [8, 16, 24], lambda parts: list(parts.data.plan.patch_size)),
    ("plan.strides", [[1, 2, 2], [2, 2, 2]], lambda parts: [list(stride) for stride in parts.module.plan.strides]),
    ("plan.batch_size", 3, lambda parts: parts.data.plan.batch_size),
    ("plan.memory_gb", 4.0, lambda parts: parts.data.plan_options["memory_gb"]),
    ("seed", 7, lambda parts: parts.data.seed),
    ("seed", 7, lambda parts: parts.callback(DSFFCallback).seed),
    ("fold", 1, lambda parts: parts.data.choice.fold),
]
DSFF: list[Line] = [
    ("dsff._target_", f"{__name__}.OwnDSFF", lambda parts: class_path(parts.callback(DSFFCallback).dsff)),
    ("dsff.density", 0.3, lambda parts: parts.callback(DSFFCallback).density),
    ("dsff.start", "erk", lambda parts: parts.callback(DSFFCallback).start),
    ("dsff.density_by_dim0", {48: 0.4}, lambda parts: parts.callback(DSFFCallback).density_by_dim0),
    ("dsff.granularity", "group", lambda parts: parts.callback(DSFFCallback).group_size > 1 and "group"),
    ("dsff.group_size", 8, lambda parts: {layer.group_size for layer in fusion_layers(parts.module).values()}.pop()),
    ("dsff.update_every", 3, lambda parts: parts.callback(DSFFCallback).update_every),
    ("dsff.update_unit", "epochs", lambda parts: parts.callback(DSFFCallback).update_unit),
    ("dsff.update_until", 0.8, lambda parts: parts.callback(DSFFCallback).update_until),
    ("dsff.growth", "gradient", lambda parts: parts.callback(DSFFCallback).growth),
    ("dsff.fraction_schedule", "constant", lambda parts: parts.callback(DSFFCallback).fraction_schedule),
    ("dsff.fraction_initial", 0.4, lambda parts: parts.callback(DSFFCallback).fraction_initial),
    ("dsff.fraction_final", 0.01, lambda parts: parts.callback(DSFFCallback).fraction_final),
    ("dsff.prune_by", "sensitivity", lambda parts: parts.callback(DSFFCallback).prune_by),
    ("dsff.prune_over", "layer", lambda parts: parts.callback(DSFFCallback).prune_over),
    ("dsff.regrown_weights", "drawn", lambda parts: parts.callback(DSFFCallback).regrown_weights),
    ("dsff.regrown_warmup", 7, lambda parts: parts.callback(DSFFCallback).regrown_warmup),
]
NETWORK: list[Line] = [
    ("network.base_features", 8, lambda parts: parts.module.hparams["network"]["base_features"]),
    ("network.max_features", 12, lambda parts: parts.module.hparams["network"]["max_features"]),
    ("network.shift_size", 5, lambda parts: parts.module.hparams["network"]["shift_size"]),
    ("network.deep_supervision", False, lambda parts: parts.module.hparams["network"]["deep_supervision"]),
]
TRAINING: list[Line] = [
    ("training.epochs", 3, lambda parts: parts.trainer.max_epochs),
    ("training.steps_per_epoch", 6, lambda parts: parts.data.steps_per_epoch),
    ("training.accumulate", 2, lambda parts: parts.trainer.accumulate_grad_batches),
    ("training.clip_norm", 3.5, lambda parts: parts.trainer.gradient_clip_val),
    ("training.precision", "bf16-mixed", lambda parts: parts.trainer.precision),
    ("training.engine", "dense", lambda parts: parts.module._engine),
    ("training.checkpoint_activations", True, lambda parts: parts.module.network.run_part is not run_once),
    ("training.compile", True, lambda parts: parts.module.training_config["compile"]),
    ("training.skip_nonfinite", 4, lambda parts: parts.module.guard.most_skips),
    ("training.validate_every", 2, lambda parts: parts.data.validate_every),
    ("training.validation_patches", 7, lambda parts: parts.data.validation_patches),
    ("training.validate_full", 0, lambda parts: parts.data.validate_full),
    ("training.validate_full", 0, lambda parts: 0 if parts.callback(BestCheckpoint).monitor == "val/dice" else 1),
    ("training.checkpoint_every", 9, lambda parts: parts.callback(LastCheckpoint).every),
    ("training.checkpoint_unit", "epochs", lambda parts: parts.callback(LastCheckpoint).unit),
    ("training.keep_every", 2, lambda parts: parts.callback(KeptCheckpoints).every),
    ("loss.smooth", 0.5, lambda parts: parts.module.loss.loss.smooth),
    ("optimizer.lr", 0.25, lambda parts: parts.optimizer.defaults["lr"]),
    ("optimizer.weight_decay", 0.125, lambda parts: parts.optimizer.defaults["weight_decay"]),
    ("schedule.interval", "epoch", lambda parts: parts.optimizers["lr_scheduler"]["interval"]),
    # The warm-up takes half of three epochs. Epoch 0 is its start, epoch 1 is two thirds of the way.
    ("schedule.warmup", 0.5, lambda parts: round(0.5 * (parts.schedule.lr_lambdas[0](1) - 0.01) / 0.66, 9)),
]
TRAINER: list[Line] = [
    ("trainer.accelerator", "cpu", lambda parts: parts.trainer.strategy.root_device.type),
    ("trainer.devices", 2, lambda parts: parts.trainer.num_devices),
    ("trainer.num_nodes", 3, lambda parts: parts.trainer.num_nodes),
    ("trainer.strategy", "ddp", lambda parts: isinstance(parts.trainer.strategy, DDPStrategy) and "ddp"),
    ("trainer.probe", False, lambda parts: parts.probed),
    ("trainer.limit_val_batches", 3, lambda parts: parts.trainer.limit_val_batches),
    ("trainer.log_every_n_steps", 4, lambda parts: parts.trainer.log_every_n_steps),
    ("trainer.log_every_n_steps", 4, lambda parts: parts.callback(TimeKeeper)._recent.maxlen),
]
LINES = [*DATA, *DSFF, *NETWORK, *TRAINING, *TRAINER]
SECTIONS = ("data", "plan", "dsff", "network", "training", "loss", "optimizer", "schedule", "trainer", "final")
FINAL = {
    "final.mirror": False,
    "final.step": 0.25,
    "final.overlay": True,
    "final.probabilities": True,
    "final.max_cases": 1,
    "final.nsd_tolerance": 2.5,
}
# Keys whose other values would make the remaining checks impossible, and where they are tested instead.
ELSEWHERE = {
    "data._target_": "tests/data/test_command.py",
    "data.layout._target_": "tests/integration/test_own_folder.py",
    **dict.fromkeys(
        [f"data.layout.{key}" for key in ("num_train", "num_test", "shape", "spacing", "phantom_seed")],
        "data.num_train and the others, by which they are given",
    ),
    "data.sampler._target_": "tests/integration/test_own_folder.py",
    "data.sampler.case_weights": "tests/data/test_patch_sampler.py",
    "data.exclude": "tests/data",
    "data.group": "tests/data",
    "plan.kind": "tests/data/test_plan.py",
    "dsff.enabled": "tests/training/test_pretraining.py",
    "dsff.density_initial": "tests/training/test_pretraining.py",  # groups, as above, do not take it
    "dsff.updates": "tests/training/test_dsff_callback.py",
    "training.base_features": "tests/config/test_experiments.py",
    "network._target_": "tests/network/test_baselines.py",
    "network.width": "tests/network/test_baselines.py",
    "network.shift_input": "tests/network/test_e2enet.py",
    "network.kernel_size": "tests/network/test_e2enet.py",
    "network.inner_kernel_size": "tests/network/test_e2enet.py",
    "network.fusion": "tests/network/test_e2enet.py",
    "loss._target_": "test_the_loss_and_the_optimizer_are_the_configs",
    "optimizer._target_": "tests/training/test_module.py",
    "schedule._target_": "tests/training/test_module.py",
    "trainer.deterministic": "tests/training",
    "trainer.enable_progress_bar": "shown on terminals alone",
    "final.predict": "tests/training/test_run_folder.py",
    "final.compact": "tests/training/test_compact.py",
    **dict.fromkeys(FINAL, "test_what_follows_training_is_the_configs"),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The parts of a run with all these values, which ends before training."""
    root = tmp_path_factory.mktemp("wiring")
    config = compose_config([f"paths.data={root}/data", f"paths.prepared={root}/prepared", f"run_folder={root}/run"])
    for key, value, _ in LINES:
        section, _, name = key.rpartition(".")
        target = config
        for part in filter(None, section.split(".")):
            target = target[part]
        target[name] = value
    found: list[Parts] = []
    probes: list[object] = []
    identities: list[Any] = []
    build = run.build_trainer

    def build_noted(*arguments: Any, **named: Any) -> pl.Trainer:
        identities.append(arguments[4])
        return build(*arguments, **named)

    def fit(trainer: pl.Trainer, module: Any, *, datamodule: Any, **_: Any) -> None:
        found.append(Parts(trainer, module, datamodule, identities[0], bool(probes)))
        raise InputError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_trainer", build_noted)
        patch.setattr(run, "probe_step", lambda *_: probes.append(1))
        patch.setattr(pl.Trainer, "fit", fit)
        with pytest.raises(InputError, match="enough"):
            run_training(config, root / "run")
    return found[0]


@pytest.mark.parametrize(("key", "value", "arrived"), LINES, ids=[f"{key}-{n}" for n, (key, _, _) in enumerate(LINES)])
def test_every_value_arrives(key: str, value: Any, arrived: Callable[[Parts], Any], parts: Parts) -> None:
    default = dict(leaves(as_plain(compose_config())))
    assert default[key] != value, "the test would not see the default in its place"
    assert arrived(parts) == value
    if key in parts.identity and not key.startswith("plan."):
        assert parts.identity[key] == value  # compared when a run resumes


def test_no_key_is_forgotten() -> None:
    config = as_plain(compose_config())
    keys = {key for section in SECTIONS for key, _ in leaves(config[section], f"{section}.")}
    assert keys - {key for key, _, _ in LINES} - set(ELSEWHERE) == set()


@pytest.mark.parametrize("place", [place for place in ELSEWHERE.values() if re.match(r"tests/|test_", place)])
def test_the_other_places_exist(place: str) -> None:
    assert (Path(__file__).parents[2] / place).exists() or place in globals()


def test_the_loss_and_the_optimizer_are_the_configs(parts: Parts) -> None:
    assert isinstance(parts.module.loss.loss, DiceCrossEntropy)
    assert type(parts.optimizer).__name__ == "AdamW"
    rates = {group["lr"] for group in parts.optimizer.param_groups}
    assert rates == {0.25 * 0.01} and parts.schedule.lr_lambdas[0](0) == 0.01  # the first epoch of the warm-up


def test_what_follows_training_is_the_configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: dict[str, Any] = {}

    def predict(models: Any, cases: Any, folder: Any, settings: Any, **more: Any) -> dict[str, str]:
        found.update({"final.mirror": settings.mirror, "final.step": settings.step, "final.max_cases": len(cases)})
        found.update({f"final.{key}": more[key] for key in ("overlay", "probabilities")})
        found["amp_dtype"] = settings.amp_dtype
        return {}

    def score(*_: Any, nsd_tolerance: float, **__: Any) -> tuple[Any, Any]:
        found["final.nsd_tolerance"] = nsd_tolerance
        return [], {}

    model = LoadedModel(*[None] * len(fields(LoadedModel)))  # type: ignore[arg-type]
    model = replace(model, network=nn.Identity(), file_ending=".nii.gz")
    monkeypatch.setattr(final, "load_model", lambda _: model)
    monkeypatch.setattr(final, "find_origin", lambda _: None)
    monkeypatch.setattr(final, "select_validation", lambda network, *_, **__: network)
    monkeypatch.setattr(final, "find_origin", lambda _: None)
    monkeypatch.setattr(final, "predict_cases", predict)
    monkeypatch.setattr(final, "score_files", score)
    monkeypatch.setattr(final, "write_scores", lambda *_: None)
    monkeypatch.setattr(final, "scores_table", lambda *_, **__: "")
    given = [f"{key}={value}" for key, value in FINAL.items()]
    config = compose_config([*given, "training.precision=bf16-mixed", "trainer.accelerator=cpu"])
    cases: Any = [SimpleNamespace(id=name, label=tmp_path) for name in "abc"]
    final.score_run(read_parts(config), tmp_path, tmp_path / "best.ckpt", cases, [])
    assert found == FINAL | {"amp_dtype": torch.bfloat16}


def class_path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return the dotted keys of a config and their values."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
