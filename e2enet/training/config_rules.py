"""What every config key accepts: one declarative table, `RULES`, read by `config_check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from e2enet.network.build import NETWORKS


@dataclass(frozen=True)
class Rule:
    """A test of one value, and what it accepts in words."""

    accepts: Callable[[Any], bool]
    expected: str


def whole(low: int, high: int | None = None) -> Rule:
    """Whole numbers from `low` to `high`."""
    words = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(lambda v: _is_whole(v) and v >= low and (high is None or v <= high), words)


def number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """Finite numbers from `low` (excluded with `above`) to `high`."""
    if high == math.inf:
        words = f"a number {'>' if above else '>='} {low:g}"
    else:
        words = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    return Rule(lambda v: _is_number(v) and (v > low if above else v >= low) and v <= high, words)


def choice(*values: Any) -> Rule:
    """One of the given values; true and 1 are not the same."""
    words = " | ".join(_spell(value) for value in values)
    return Rule(lambda v: any(v == value and type(v) is type(value) for value in values), words)


def optional(rule: Rule) -> Rule:
    """Null or what `rule` accepts."""
    return Rule(lambda v: v is None or rule.accepts(v), f"null or {rule.expected}")


def list_of(rule: Rule, length: int | None = None) -> Rule:
    """A list whose items `rule` accepts."""
    count = "" if length is None else f"{length} items: "
    return Rule(
        lambda v: isinstance(v, list) and length in (None, len(v)) and all(map(rule.accepts, v)),
        f"a list of {count}each {rule.expected}",
    )


def table_of(key: Rule, value: Rule) -> Rule:
    """A mapping whose keys and values the two rules accept."""
    return Rule(
        lambda v: isinstance(v, Mapping) and all(key.accepts(k) and value.accepts(x) for k, x in v.items()),
        f"a mapping from {key.expected} to {value.expected}",
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value).replace(" ", "")


flag = choice(True, False)
text = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "text")
positive = number(0, above=True)
share = number(0, 1, above=True)
anything = Rule(lambda v: True, "anything")
axes = Rule(
    lambda v: isinstance(v, list) and all(_is_whole(a) and 0 <= a <= 2 for a in v) and len(set(v)) == len(v),
    "a list of different axes out of 0 (depth), 1, 2",
)
voxels = list_of(whole(1), 3)

RULES: dict[str, Rule] = {
    "paths.data": text,
    "paths.prepared": text,
    "paths.runs": text,
    "name": text,
    "seed": whole(0),
    "fold": Rule(lambda v: v == "all" or (_is_whole(v) and 0 <= v <= 4), "a whole number from 0 to 4, or all"),
    "run_folder": text,
    "resume": optional(text),
    "final.predict": flag,
    "final.max_cases": optional(whole(1)),
    "final.mirror": flag,
    "final.step": share,
    "final.nsd_tolerance": positive,
    "final.overlay": flag,
    "plan.kind": choice("auto", "paper"),
    "plan.spacing": optional(list_of(positive, 3)),
    "plan.patch_size": optional(voxels),
    "plan.strides": optional(list_of(voxels)),
    "plan.batch_size": optional(whole(1)),
    "plan.memory_gb": optional(positive),
    "network.name": choice(*NETWORKS),
    "network.base_features": whole(1),
    "network.max_features": whole(1),
    "network.shift_size": choice(None, 1, 3, 5, 7, 11),
    "network.shift_input": flag,
    "network.kernel_size": choice([1, 3, 3], [3, 1, 3], [3, 3, 1], [3, 3, 3]),
    "network.fusion": choice("grid", "unet"),
    "network.deep_supervision": flag,
    "dsff.masks": flag,
    "dsff.density": share,
    "dsff.start": choice("uniform", "erk"),
    "dsff.density_by_dim0": optional(table_of(whole(1), share)),
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
    "training.compile": flag,
    "training.validate_every": whole(1),
    "training.checkpoint_every": whole(1),
    "trainer.accelerator": choice("auto", "cpu", "gpu"),
    "trainer.devices": whole(1),
    "trainer.num_nodes": whole(1),
    "trainer.strategy": choice("auto", "ddp"),
    "trainer.deterministic": choice(False, True, "warn"),
    "trainer.progress": flag,
    "trainer.limit_val_batches": optional(whole(1)),
    "logger.wandb": flag,
    "logger.project": optional(text),
    "logger.group": optional(text),
    "logger.tags": list_of(text),
    "logger.offline": flag,
}

# Sections built through `_target_`: their keys are the target's parameters, minus those that the code
# supplies. A rule for a key here holds wherever the key is given.
SUPPLIED: dict[str, set[str]] = {
    "data": {"root", "prepared_root", "fold", "seed", "plan", "steps_per_epoch"},
    "training.loss": set(),
    "training.optimizer": {"params"},
    "training.schedule": {"optimizer", "total", "last_epoch"},
}
TARGET_RULES: dict[str, Rule] = {
    "data.name": text,
    "data.mirror_axes": axes,
    "data.augmentation": choice("nnunet", "mirror", "none"),
    "data.num_workers": whole(0),
    "data.num_train": whole(5),
    "data.num_test": whole(0),
    "data.shape": voxels,
    "data.spacing": list_of(positive, 3),
    "data.phantom_seed": whole(0),
    "data.limit_cases": optional(whole(1)),
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
    "data": {"facts": table_of(text, anything)},
    "training.schedule": {"interval": choice("epoch", "step")},
}
