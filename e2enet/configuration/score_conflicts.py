"""Settings that read a score of the validation more often than it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping

from e2enet.common.config_check import Conflict
from e2enet.common.signatures import resolve_target
from e2enet.training.module import PATCHES, SCORES, WHOLE_CASES


def _early_stopping(
    callbacks: Mapping[str, Mapping[str, Any] | None] | None, validate_every: int, validate_full: int | None
) -> str | None:
    every = {SCORES[PATCHES]: ("validate_every", validate_every), SCORES[WHOLE_CASES]: ("validate_full", validate_full)}
    for name, section in (callbacks or {}).items():
        target = None if section is None else resolve_target(str(section["_target_"]))
        if section is None or not (isinstance(target, type) and issubclass(target, EarlyStopping)):
            continue
        key, period = every.get(str(section.get("monitor")), ("", 1))
        if period != 1:
            return (
                f"callbacks.{name}: it reads {section['monitor']} after every epoch, and training.{key}={period} "
                f"measures it less often; expected training.{key}=1"
            )
    return None


def _searched(optimized_metric: str | None, validate_full: int | None) -> str | None:
    kind = SCORES[WHOLE_CASES].partition("/")[0]
    if str(optimized_metric).startswith(f"{kind}/") and not validate_full:
        return (
            f"optimized_metric={optimized_metric}: whole cases are never validated, since training.validate_full="
            f"{'null' if validate_full is None else 0}; expected a period of epochs there, or {SCORES[PATCHES]}"
        )
    return None


SCORE_CONFLICTS = (
    Conflict(("callbacks", "training.validate_every", "training.validate_full"), _early_stopping),
    Conflict(("optimized_metric", "training.validate_full"), _searched),
)
