"""Contradictions: config values that are valid alone but impossible together, or on this machine."""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from e2enet.common.config_check import Conflict
from e2enet.common.errors import InputError, first_line
from e2enet.common.signatures import resolve_target
from e2enet.common.steps import order_problem
from e2enet.configuration.dsff_conflicts import DSFF_CONFLICTS
from e2enet.configuration.score_conflicts import SCORE_CONFLICTS
from e2enet.configuration.trials import network_problem, trainer_problem
from e2enet.data.augmentation.trial import recipe_problem
from e2enet.data.config_rules import folder_conflict
from e2enet.data.planning.planner import PAPER_STRIDES
from e2enet.inference.checkpoint import read_hyper_parameters
from e2enet.network.baselines import missing_package
from e2enet.network.build import CHANNELS, OFFERED, is_e2enet, network_class
from e2enet.network.engine.select import COMPILED, ONLY_GROUPS, RECOMPUTED
from e2enet.runs.ablations import ablation_problems
from e2enet.training.loggers import is_wandb

# Lightning logger -> packages, of which it needs one.
LOGGER_PACKAGES = {
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "MLFlowLogger": ("mlflow", "mlflow_skinny"),
    "CometLogger": ("comet_ml",),
    "NeptuneLogger": ("neptune",),
}
# Lightning strategies that split weights over processes.
SHARDING = ("fsdp", "deepspeed", "modelparallel", "model_parallel")


def _shift_and_kernel(
    shift_size: int | None, kernel_size: Sequence[int] | None, inner_kernel_size: Sequence[int] | None
) -> str | None:
    kernels = {"kernel_size": kernel_size, "inner_kernel_size": inner_kernel_size}
    wrong = [f"{name} {kernel}" for name, kernel in kernels.items() if kernel and list(kernel) != [1, 3, 3]]
    if shift_size is not None and shift_size > 1 and wrong:
        return (
            f"network.shift_size={shift_size}: the depth-shift belongs to "
            f"kernel_size [1,3,3], not {' and '.join(wrong)}; "
            "set network.shift_size=1 (or null)"
        )
    return None


def _inner_kernel_and_fusion(inner_kernel_size: Sequence[int] | None, fusion: str | None) -> str | None:
    if inner_kernel_size is not None and fusion == "unet":
        return (
            f"network.inner_kernel_size={inner_kernel_size}: the unet variant has no inner fusion nodes; expected null"
        )
    return None


def _patch_and_strides(
    patch_size: Sequence[int] | None, strides: Sequence[Sequence[int]] | None, kind: str
) -> str | None:
    strides = strides or (PAPER_STRIDES if kind == "paper" else None)
    if patch_size is None or not strides:
        return None
    totals = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
    if any(size % total for size, total in zip(patch_size, totals, strict=True)):
        fitting = [max(total, round(size / total) * total) for size, total in zip(patch_size, totals, strict=True)]
        return f"plan.patch_size={list(patch_size)}: the strides need multiples of {totals}, e.g. {fitting}"
    return None


def _network(
    network: Mapping[str, Any],
    masks: bool,
    strides: Sequence[Sequence[int]] | None,
    patch_size: Sequence[int] | None,
) -> str | None:
    if missing := missing_package(str(network["_target_"])):
        return missing
    own = str(network["_target_"]).startswith("e2enet.")
    if own and (given := sorted(OFFERED & set(network))):
        return f"network.{given[0]}: is set by the plan (plan.strides, plan.patch_size)"
    if not own and "width" in network:
        named = network_class(str(network["_target_"]))
        if not {"width", *CHANNELS} & set(inspect.signature(named).parameters):
            return f"network.width: {named.__name__} has no base_features to multiply; leave it out"
    if masks and network.get("fusion") == "unet":
        return "dsff.enabled=true: the unet variant has no fusion layers to mask; use dsff=dense"
    if own:
        fusion = "fusion" in inspect.signature(network_class(str(network["_target_"]))).parameters
        lacks = f"dsff.enabled=true: {network['_target_']} has no fusion layers to mask; use dsff=dense"
        return lacks if masks and not fusion else None
    return network_problem(network, masks, strides, patch_size)


def has_gpu() -> bool:
    """Return whether torch can use a GPU of this machine."""
    return torch.cuda.is_available()


def on_cpu(accelerator: str) -> bool:
    """Whether training with `trainer.accelerator` runs on a CPU."""
    return accelerator == "cpu" or (accelerator == "auto" and not has_gpu())


def _precision_and_device(precision: Any, accelerator: str) -> str | None:
    if precision == "16-mixed" and on_cpu(accelerator):
        return "training.precision=16-mixed: needs a GPU; expected 32 | bf16-mixed on a CPU"
    return None


def _device_exists(accelerator: str) -> str | None:
    if accelerator in ("gpu", "cuda") and not has_gpu():
        return f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use; expected auto | cpu"
    return None


def _checkpoint_activations(checkpoint_activations: bool, network: Mapping[str, Any]) -> str | None:
    if checkpoint_activations and not is_e2enet(network):
        return (
            f"training.checkpoint_activations=true: {network['_target_']} keeps its activations; expected false, or "
            "network=e2enet"
        )
    return None


def _own_engine(
    engine: str,
    network: Mapping[str, Any],
    accelerator: str,
    granularity: str,
    compiled: bool,
    checkpoint_activations: bool,
) -> str | None:
    ungrouped = not on_cpu(accelerator) and granularity != "group"
    reasons = {
        f"{network['_target_']} is no E2ENet": not is_e2enet(network),
        f"with trainer.accelerator={accelerator}, {ONLY_GROUPS}": engine == "sparse" and ungrouped,
        COMPILED: compiled,
        RECOMPUTED: checkpoint_activations,
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if engine in ("sparse", "fused") and wrong:
        return f"training.engine={engine}: {' and '.join(wrong)}; expected training.engine=auto or dense"
    return None


def _accumulate_and_epoch(accumulate: int, steps_per_epoch: int) -> str | None:
    if accumulate > steps_per_epoch:
        return (
            f"training.accumulate={accumulate}: an epoch has training.steps_per_epoch={steps_per_epoch} batches, and a "
            f"step is of one epoch's; expected at most {steps_per_epoch}, or longer epochs"
        )
    return None


def _row_of_ablation(ablation: Mapping[str, Any] | None, row: str | None) -> str | None:
    if ablation is None:
        return (
            None if row is None else f"row={row}: rows belong to an experiment; choose one, e.g. experiments=sparsity"
        )
    return "\n  - ".join(ablation_problems(ablation, row)) or None


def _initial_weights(initial_weights: str | None, pretraining: Sequence[str] | None, resume: str | None) -> str | None:
    if initial_weights is None or resume is not None:  # a resumed run has weights of its own
        return None
    if pretraining:
        return "initial_weights: pretraining gives the weights; expected null beside it"
    try:
        read_hyper_parameters(Path(initial_weights))
    except InputError as error:
        return f"initial_weights={error}"
    return None


def _run_folder(runs: str, run_folder: str) -> str | None:
    places = {"paths.runs": runs, "run_folder": run_folder}
    if Path(runs) in Path(run_folder).parents:  # the default
        del places["run_folder"]
    problems = [folder_conflict(key, writable=True).find(path) for key, path in places.items()]
    return "\n  - ".join(filter(None, problems)) or None


def _login(loggers: Mapping[str, Mapping[str, Any] | None] | None) -> str | None:
    for name, logger in (loggers or {}).items():
        online = logger is not None and is_wandb(logger) and not logger.get("offline")
        if online and os.environ.get("WANDB_MODE", "online") == "online" and (problem := _login_problem()):
            key = f"logger.{name}.offline"
            return f"{key}=false: {problem}; expected {key}=true, or `wandb login`"
    return None


def _packages(loggers: Mapping[str, Mapping[str, Any] | None] | None) -> str | None:
    for name, logger in (loggers or {}).items():
        kind = "" if logger is None else str(logger["_target_"]).rpartition(".")[2]
        packages = LOGGER_PACKAGES.get(kind, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            install = f"python -m pip install {packages[0]}"
            return f"logger.{name}: {kind} needs the package {' or '.join(packages)}, which is not installed; {install}"
    return None


def _averages(callbacks: Mapping[str, Mapping[str, Any] | None] | None, masks: bool) -> str | None:
    for name, section in (callbacks or {}).items():
        target = None if section is None else resolve_target(str(section["_target_"]))
        if not masks or section is None or not isinstance(target, type):
            continue
        bases = {base.__name__ for base in target.__mro__}  # by name: Lightning has them from 2.6 on
        if "WeightAveraging" in bases and "MaskedWeightAveraging" not in bases:
            return (
                f"callbacks.{name}: {section['_target_']} averages masks too, which would let pruned kernels live; "
                "expected callbacks=weight_averaging, or dsff=dense"
            )
    return None


def _trainer(trainer: Mapping[str, Any], masks: bool) -> str | None:
    if masks and any(kind in str(trainer["strategy"]).lower() for kind in SHARDING):
        return (
            f"trainer.strategy={trainer['strategy']}: gives each process a part of the weights, and DSFF masks whole "
            "ones; expected ddp, or dsff=dense"
        )
    return trainer_problem(trainer)


def _order(augmentation: Any) -> str | None:
    order = augmentation.get("order") if isinstance(augmentation, Mapping) else None
    is_readable = isinstance(order, list) and all(isinstance(name, str) for name in order)
    return order_problem("augmentation", augmentation) if is_readable else None


@cache  # called for every job of a sweep
def _login_problem() -> str | None:
    import wandb
    from wandb.errors import Error

    try:
        return None if wandb.login(prompt=False) else "this machine is not logged in to Weights & Biases"
    except Error as error:
        return f"Weights & Biases refused the login ({first_line(error)})"


CONFLICTS: tuple[Conflict, ...] = (
    folder_conflict("paths.prepared", writable=True),
    Conflict(("paths.runs", "run_folder"), _run_folder),
    Conflict(("augmentation",), _order, always=True),
    Conflict(("augmentation", "plan.patch_size", "data.mirror_axes"), recipe_problem),
    Conflict(("logger",), _login),
    Conflict(("logger",), _packages),
    Conflict(("callbacks", "dsff.enabled"), _averages),
    *SCORE_CONFLICTS,
    Conflict(("network.shift_size", "network.kernel_size", "network.inner_kernel_size"), _shift_and_kernel),
    Conflict(("network.inner_kernel_size", "network.fusion"), _inner_kernel_and_fusion),
    Conflict(("plan.patch_size", "plan.strides", "plan.kind"), _patch_and_strides),
    Conflict(("network", "dsff.enabled", "plan.strides", "plan.patch_size"), _network),
    *DSFF_CONFLICTS,
    Conflict(("training.precision", "trainer.accelerator"), _precision_and_device, machine=True),
    Conflict(("trainer.accelerator",), _device_exists, machine=True),
    Conflict(("trainer", "dsff.enabled"), _trainer, machine=True),
    Conflict(("training.checkpoint_activations", "network"), _checkpoint_activations),
    Conflict(
        (
            "training.engine",
            "network",
            "trainer.accelerator",
            "dsff.granularity",
            "training.compile",
            "training.checkpoint_activations",
        ),
        _own_engine,
        machine=True,
    ),
    Conflict(("training.accumulate", "training.steps_per_epoch"), _accumulate_and_epoch),
    Conflict(("initial_weights", "pretraining", "resume"), _initial_weights),
    Conflict(("ablation", "row"), _row_of_ablation),
)
