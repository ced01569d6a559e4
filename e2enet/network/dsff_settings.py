"""Check the settings of `DSFF`, and what it is attached to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from e2enet.network import dsff
from e2enet.network.dsff_schedule import UpdateSchedule

CHOICES = {
    "start": ("uniform", "erk"),
    "update_unit": ("steps", "epochs", "run", "auto"),
    "growth": ("random", "gradient"),
    "fraction_schedule": ("cosine", "constant"),
}
# None takes the first.
OPTIONAL_CHOICES = {
    "prune_by": ("magnitude", "sensitivity"),
    "prune_over": ("layer", "network"),
    "regrown_weights": ("zero", "drawn"),
}


def wrong_settings(given: Mapping[str, Any]) -> list[str]:
    """Return a message for every wrong setting of `DSFF`, with the expected values."""
    wrong = [
        f"{name}={given[name]!r}: expected {' or '.join(choices)}"
        for name, choices in CHOICES.items()
        if given[name] not in choices
    ]
    wrong += [
        f"{name}={given[name]!r}: expected {' or '.join(choices)}, or None"
        for name, choices in OPTIONAL_CHOICES.items()
        if given[name] not in (None, *choices)
    ]
    densities = {f"density_by_dim0[{dim0}]": share for dim0, share in (given["density_by_dim0"] or {}).items()}
    if given["density_initial"] is not None:
        densities["density_initial"] = given["density_initial"]
    positive = {name: given[name] for name in ("density", "update_until")} | densities
    shares = positive | {name: given[name] for name in ("fraction_initial", "fraction_final")}
    for name, value in shares.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1 or (name in positive and value == 0):
            wrong.append(f"{name}={value!r}: expected a share in {'(' if name in positive else '['}0, 1]")
    every = given["update_every"]
    if not isinstance(every, int | float) or not 0 < every < math.inf:
        wrong.append(f"update_every={every!r}: expected a number > 0")
    elif (expected := period_expected(given["update_unit"], every)) is not None:
        wrong.append(f'update_every={every!r}: expected {expected}, since update_unit is "{given["update_unit"]}"')
    warmup = given["regrown_warmup"]
    if warmup is not None and (not isinstance(warmup, int) or warmup < 1):
        wrong.append(f"regrown_warmup={warmup!r}: expected a whole number >= 1, or None")
    return wrong or _wrong_together(given)


def period_expected(unit: str, every: float) -> str | None:
    """Return in words which periods this unit takes if it does not take this one."""
    if unit == "run" and every > 1:
        return "a share in (0, 1]"
    if unit == "steps" and (every < 1 or every % 1 > 0):
        return "a whole number >= 1"
    if unit == "auto" and every > 1 and every % 1 > 0:
        return "a share below 1, or a whole number"
    return None


def _wrong_together(given: Mapping[str, Any]) -> list[str]:
    """Return messages for settings that do not fit each other."""
    wrong = []
    start = given["density_initial"]
    if start is not None and start < given["density"]:
        wrong.append(f"density_initial={start!r}: expected at least density={given['density']!r}, to which it falls")
    for name in ("density_initial", "prune_over"):
        if given["group_size"] > 1 and given[name] not in (None, "layer"):
            wrong.append(
                f'{name}={given[name]!r}: expected granularity="kernel", since all groups read equally many inputs'
            )
    return wrong


def wrong_length(given: Mapping[str, Any], total_steps: int, epochs: float | None) -> list[str]:
    """Return a message for what is wrong with the length of a run."""
    wrong = []
    if total_steps < 1:
        wrong.append(f"total_steps={total_steps}: expected the optimizer steps of the whole run, >= 1")
    if given["update_unit"] == "epochs" and (epochs is None or epochs <= 0):
        wrong.append(f'epochs={epochs}: expected a number > 0, since update_unit is "epochs"')
    return wrong


def wrong_schedule(given: Mapping[str, Any], schedule: UpdateSchedule) -> list[str]:
    """Return a message for every setting that does not fit the updates of a run."""
    wrong, warmup = [], given["regrown_warmup"]
    if given["density_initial"] not in (None, given["density"]) and schedule.last == 0:
        wrong.append(
            f"density_initial={given['density_initial']!r}: expected updates of the masks, by which the density falls; "
            f"{schedule.why_none}"
        )
    if warmup is not None and schedule.last > schedule.period and warmup > schedule.period:
        wrong.append(f"regrown_warmup={warmup!r}: expected at most {schedule.period}, the steps from update to update")
    return wrong


def unused_densities(given: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return a message for every density that is meant for layers which the model does not have."""
    found = sorted({layer.kernel_mask.shape[0] for layer in dsff.fusion_layers(model).values()})
    return [
        f"DSFF: density_by_dim0[{dim0}] changes nothing: no fusion layer's weight has this first dimension, they have "
        f"{', '.join(map(str, found))}"
        for dim0 in given["density_by_dim0"] or {}
        if dim0 not in found
    ]


def untrained_layers(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return a message for every fusion layer whose weight the optimizer does not train."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    layers = dsff.fusion_layers(model).items()
    wrong = [
        f"{name}.weight: requires no gradient; expected one to train"
        for name, layer in layers
        if not layer.weight.requires_grad
    ]
    return wrong + [
        f"{name}.weight: the optimizer does not hold it; expected all fusion layers' weights"
        for name, layer in layers
        if id(layer.weight) not in held
    ]
