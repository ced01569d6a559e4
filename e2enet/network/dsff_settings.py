"""Check the settings of `DSFF`, and what it is attached to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from e2enet.network import dsff

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
    elif given["update_unit"] == "run" and every > 1:
        wrong.append(f'update_every={every!r}: expected a share in (0, 1], since update_unit is "run"')
    warmup = given["regrown_warmup"]
    if warmup is not None and (not isinstance(warmup, int) or warmup < 1):
        wrong.append(f"regrown_warmup={warmup!r}: expected a whole number >= 1, or None")
    return wrong or _wrong_together(given)


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
