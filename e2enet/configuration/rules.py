"""The rules of all config keys except those of data (data/config_rules.py).

A section with a `_target_` is checked by the signature of what it builds. The rules here are for plain keys, and for
ranges that no annotation gives.
"""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer

from e2enet.common.config_check import Part, Schema
from e2enet.common.config_rules import (
    ENGINES,
    Rule,
    choice,
    flag,
    list_of,
    number,
    optional,
    positive,
    share,
    table_of,
    text,
    whole,
)
from e2enet.configuration.conflicts import CONFLICTS
from e2enet.data import config_rules as data
from e2enet.network import dsff_settings
from e2enet.network.build import OFFERED as OFFERED_TO_NETWORKS
from e2enet.network.build import SUPPLIED as SUPPLIED_TO_NETWORKS
from e2enet.network.e2enet import KERNEL_SIZES
from e2enet.runs.ablations import ABLATION_RULE
from e2enet.system.precision import AUTO
from e2enet.training.loggers import SUPPLIED as SUPPLIED_TO_LOGGERS
from e2enet.training.trainer import SUPPLIED_TO_CALLBACKS

KERNEL_RULE = choice(*(list(kernel) for kernel in KERNEL_SIZES))
PRECISIONS = (AUTO, 32, "32-true", "bf16-mixed", "16-mixed", 64, "64-true")
DEVICES = Rule(
    lambda v: v in (-1, "auto") or whole(1).accepts(v) or (list_of(whole(0)).accepts(v) and len(set(v)) == len(v) > 0),
    "a whole number >= 1, -1 or auto (all there are), or a list of devices such as [0,2]",
)
LIMIT = optional(Rule(lambda v: whole(1).accepts(v) or share.accepts(v), "a whole number >= 1, or a share in (0, 1]"))
RULES: dict[str, Rule] = {
    **data.RULES,
    "name": text,
    "run_folder": text,
    "resume": optional(text),
    "initial_weights": optional(text),
    "pretraining": optional(list_of(text)),
    "ablation": ABLATION_RULE,
    "row": optional(text),
    "final.predict": flag,
    "final.max_cases": optional(whole(1)),
    "final.mirror": flag,
    "final.step": share,
    "final.nsd_tolerance": positive,
    "final.overlay": flag,
    "final.probabilities": flag,
    "final.compact": flag,
    "training.base_features": optional(whole(1)),
    "training.epochs": whole(1),
    "training.steps_per_epoch": whole(1),
    "training.accumulate": whole(1),
    "training.clip_norm": optional(positive),
    "training.precision": choice(*PRECISIONS),
    "training.engine": choice(*ENGINES),
    "training.checkpoint_activations": flag,
    "training.compile": flag,
    "training.skip_nonfinite": optional(whole(1)),
    "training.validate_every": whole(1),
    "training.validation_patches": whole(1),
    "training.validate_full": optional(whole(0)),
    "training.checkpoint_every": whole(1),
    "training.checkpoint_unit": choice("steps", "epochs"),
    "training.keep_every": optional(whole(1)),
    "optimized_metric": optional(text),
    "augmentation.order": optional(list_of(text)),
}

PROBABILITY = number(0, 1)
AUGMENTATION = Part(
    supplied=frozenset({"patch_size", "mirror_axes"}),
    rules={
        **dict.fromkeys(("p", "channel_p", "rotation_p", "scale_p"), PROBABILITY),
        **dict.fromkeys(("strength", "scale"), list_of(positive, 2)),
        **dict.fromkeys(("degrees", "degrees_in_plane"), number(0, 180)),
        "deviation": list_of(number(0), 2),
        "anisotropy": positive,
    },
    may_lack=True,
)

NETWORK = Part(
    base=nn.Module,
    supplied=SUPPLIED_TO_NETWORKS,
    offered=OFFERED_TO_NETWORKS,
    extras={"width": positive},
    rules={
        "base_features": whole(1),
        "max_features": whole(1),
        "shift_size": choice(None, 1, 3, 5, 7, 11),
        "shift_input": flag,
        "kernel_size": KERNEL_RULE,
        "inner_kernel_size": optional(KERNEL_RULE),
        "fusion": choice("grid", "unet"),
    },
)
DSFF = Part(
    supplied=frozenset({"seed"}),
    extras={"enabled": flag},
    rules={
        "density": share,
        "granularity": choice("kernel", "group"),
        **{key: choice(*values) for key, values in dsff_settings.CHOICES.items()},
        **{key: choice(None, *values) for key, values in dsff_settings.OPTIONAL_CHOICES.items()},
        "density_by_dim0": optional(table_of(whole(1), share)),
        "group_size": choice(8, 16, 32),
        "update_every": positive,
        "update_until": share,
        "fraction_initial": number(0, 1),
        "fraction_final": number(0, 1),
        "density_initial": optional(share),
        "regrown_warmup": optional(whole(1)),
    },
)
LOSS = Part(rules=dict.fromkeys(("smooth", "dice_weight", "cross_entropy_weight"), number(0)))
OPTIMIZER = Part(
    base=Optimizer,
    supplied=frozenset({"params"}),
    rules={"lr": positive, "weight_decay": number(0), "momentum": number(0, 1)},
)
SCHEDULE = Part(
    supplied=frozenset({"optimizer", "total", "last_epoch"}),
    extras={"interval": choice("epoch", "step"), "monitor": text},
    rules={"exponent": number(0), "warmup": number(0, 1)},
)
TRAINER = Part(
    target=Trainer,
    reserved={
        "max_epochs": "is set by training.epochs",
        "min_epochs": "is set by training.epochs",
        "max_steps": "is set by training.epochs and training.steps_per_epoch",
        "min_steps": "is set by training.epochs and training.steps_per_epoch",
        "accumulate_grad_batches": "is set by training.accumulate",
        "gradient_clip_val": "is set by training.clip_norm",
        "precision": "is set by training.precision",
        "logger": "is set by the group logger",
        "callbacks": "is set by the group callbacks",
        "enable_checkpointing": "is set by training.checkpoint_every and training.keep_every",
        "default_root_dir": "is set by run_folder",
        "check_val_every_n_epoch": "is set by training.validate_every and training.validate_full",
        "val_check_interval": "is set by training.validate_every and training.validate_full",
        "num_sanity_val_steps": "validation cannot be tried before training; debug=one_batch tries all",
        "use_distributed_sampler": "is false here: the samplers share cases out themselves",
        "reload_dataloaders_every_n_epochs": "is 0 here: the samplers know the epoch",
        "benchmark": "is set by trainer.deterministic",
        "inference_mode": "is set by the run",
        "enable_model_summary": "is false here: cost.json counts the network",
        "model_registry": "is not used here",
    },
    extras={"probe": flag},
    rules={"devices": DEVICES, "num_nodes": whole(1), "log_every_n_steps": whole(1), "limit_val_batches": LIMIT},
)
PARTS = {
    **data.PARTS,
    "network": NETWORK,
    "dsff": DSFF,
    "loss": LOSS,
    "optimizer": OPTIMIZER,
    "schedule": SCHEDULE,
    "trainer": TRAINER,
    "logger.*": Part(base=Logger, supplied=SUPPLIED_TO_LOGGERS, may_lack=True),
    "augmentation.*": AUGMENTATION,
    "callbacks.*": Part(base=Callback, supplied=SUPPLIED_TO_CALLBACKS, may_lack=True),
}

SCHEMA = Schema(RULES, PARTS, (*data.CONFLICTS, *CONFLICTS))
