"""Settings of the section `dsff` that do not fit each other."""

from __future__ import annotations

from e2enet.common.config_check import Conflict
from e2enet.network.dsff_settings import period_expected


def _fractions(schedule: str, initial: float, final: float) -> str | None:
    if schedule == "cosine" and final > initial:
        return f"dsff.fraction_final={final}: more than dsff.fraction_initial={initial}, and a cosine falls"
    return None


def _density_falls(initial: float | None, density: float, updates: bool) -> str | None:
    if initial is not None and initial < density:
        return f"dsff.density_initial={initial}: less than dsff.density={density}, to which it falls"
    if initial is not None and initial > density and not updates:
        return f"dsff.density_initial={initial}: needs dsff.updates=true, by which the density falls"
    return None


def _period(unit: str, every: float) -> str | None:
    expected = period_expected(unit, every)
    if expected is None:
        return None
    share = "; a share of the run: dsff.update_unit=run" if unit == "steps" and every < 1 else ""
    return f"dsff.update_every={every}: expected {expected}, since dsff.update_unit={unit}{share}"


def _warmup_within_period(unit: str, every: float, warmup: int | None) -> str | None:
    in_steps = unit == "steps" or (unit == "auto" and every >= 1)
    if warmup is not None and in_steps and warmup > every:
        return f"dsff.regrown_warmup={warmup}: more steps than from one update to the next, dsff.update_every={every}"
    return None


def _equal_groups(granularity: str, initial: float | None, over: str | None) -> str | None:
    if granularity == "group" and (initial is not None or over == "network"):
        given = f"density_initial={initial}" if initial is not None else f"prune_over={over}"
        return f"dsff.{given}: needs dsff.granularity=kernel, since all groups of a layer read equally many inputs"
    return None


def _density_one(masks: bool, updates: bool, density: float) -> str | None:
    if masks and updates and density == 1:
        return "dsff.density=1: updates would only reset kernels to zero; use dsff=dense (or dsff.updates=false)"
    return None


DSFF_CONFLICTS = (
    Conflict(("dsff.fraction_schedule", "dsff.fraction_initial", "dsff.fraction_final"), _fractions),
    Conflict(("dsff.density_initial", "dsff.density", "dsff.updates"), _density_falls),
    Conflict(("dsff.update_unit", "dsff.update_every"), _period),
    Conflict(("dsff.update_unit", "dsff.update_every", "dsff.regrown_warmup"), _warmup_within_period),
    Conflict(("dsff.granularity", "dsff.density_initial", "dsff.prune_over"), _equal_groups),
    Conflict(("dsff.enabled", "dsff.updates", "dsff.density"), _density_one),
)
