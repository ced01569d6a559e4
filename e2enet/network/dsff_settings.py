"""Check the settings of `DSFF`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CHOICES = {
    "start": ("uniform", "erk"),
    "update_unit": ("steps", "epochs"),
    "growth": ("random", "gradient"),
    "fraction_schedule": ("cosine", "constant"),
}


def wrong_settings(given: Mapping[str, Any]) -> list[str]:
    """Return a message for every wrong setting of `DSFF`, with the expected values."""
    wrong = [
        f"{name}={given[name]!r}: expected {' or '.join(choices)}"
        for name, choices in CHOICES.items()
        if given[name] not in choices
    ]
    densities = {f"density_by_dim0[{dim0}]": share for dim0, share in (given["density_by_dim0"] or {}).items()}
    positive = {name: given[name] for name in ("density", "update_until")} | densities
    shares = positive | {name: given[name] for name in ("fraction_initial", "fraction_final")}
    for name, value in shares.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1 or (name in positive and value == 0):
            wrong.append(f"{name}={value!r}: expected a share in {'(' if name in positive else '['}0, 1]")
    every = given["update_every"]
    if not isinstance(every, int | float) or not 0 < every < math.inf:
        wrong.append(f"update_every={every!r}: expected a number > 0")
    return wrong
