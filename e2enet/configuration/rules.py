"""What every config key accepts, beside those that concern data (data/config_rules.py)."""

from __future__ import annotations

from e2enet.common.config_check import Schema
from e2enet.common.config_rules import (
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
from e2enet.network.build import NETWORKS
from e2enet.network.e2enet import KERNEL_SIZES
from e2enet.network.engine import ENGINES
from e2enet.runs.ablations import ABLATION_RULE

KERNEL_RULE = choice(*(list(kernel) for kernel in KERNEL_SIZES))
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
    "final.compact": flag,
    "dsff.masks": flag,
    "dsff.density": share,
    "dsff.start": choice("uniform", "erk"),
    "dsff.density_by_dim0": optional(table_of(whole(1), share)),
    "dsff.granularity": choice("kernel", "group"),
    "dsff.group_size": choice(8, 16, 32),
    "dsff.updates": flag,
    "dsff.update_every": positive,
    "dsff.update_unit": choice("steps", "epochs"),
    "dsff.update_until": share,
    "dsff.growth": choice("random", "gradient"),
    "dsff.fraction_schedule": choice("cosine", "constant"),
    "dsff.fraction_initial": number(0, 1),
    "dsff.fraction_final": number(0, 1),
    "training.epochs": whole(1),
    "training.steps_per_epoch": whole(1),
    "training.accumulate": whole(1),
    "training.clip_norm": optional(positive),
    "training.precision": choice(32, "bf16-mixed", "16-mixed"),
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
    "trainer.accelerator": choice("auto", "cpu", "gpu"),
    "trainer.devices": whole(1),
    "trainer.num_nodes": whole(1),
    "trainer.strategy": choice("auto", "ddp"),
    "trainer.deterministic": choice(False, True, "warn"),
    "trainer.progress": flag,
    "trainer.probe": flag,
    "trainer.limit_val_batches": optional(whole(1)),
    "trainer.log_every": whole(1),
    "logger.wandb": flag,
    "logger.project": optional(text),
    "logger.group": optional(text),
    "logger.tags": list_of(text),
    "logger.offline": flag,
}

# Sections built through `_target_`, or of `BY_NAME` through their `name`: their keys are the target's parameters, minus
# those that the code supplies. A rule for a key here holds wherever the key is given.
BY_NAME = {"network": NETWORKS}
SUPPLIED: dict[str, set[str]] = {
    **data.SUPPLIED,
    "network": {"in_channels", "num_classes", "strides"},
    "training.loss": set(),
    "training.optimizer": {"params"},
    "training.schedule": {"optimizer", "total", "last_epoch"},
}
TARGET_RULES: dict[str, Rule] = {
    **data.TARGET_RULES,
    "network.base_features": whole(1),
    "network.max_features": whole(1),
    "network.shift_size": choice(None, 1, 3, 5, 7, 11),
    "network.shift_input": flag,
    "network.kernel_size": KERNEL_RULE,
    "network.inner_kernel_size": optional(KERNEL_RULE),
    "network.fusion": choice("grid", "unet"),
    "network.deep_supervision": flag,
    "training.loss.smooth": number(0),
    "training.loss.dice_weight": number(0),
    "training.loss.cross_entropy_weight": number(0),
    "training.optimizer.lr": positive,
    "training.optimizer.weight_decay": number(0),
    "training.optimizer.momentum": number(0, 1),
    "training.schedule.exponent": number(0),
    "training.schedule.warmup": number(0, 1),
}
# Keys of such sections that are no parameters of the target.
EXTRAS: dict[str, dict[str, Rule]] = {
    **data.EXTRAS,
    "network": {"name": text, "width": positive},
    "training.schedule": {"interval": choice("epoch", "step")},
}

SCHEMA = Schema(RULES, SUPPLIED, TARGET_RULES, EXTRAS, (*data.CONFLICTS, *CONFLICTS), BY_NAME)
