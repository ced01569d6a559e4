"""Config sections of ordered steps, such as `augmentation`: a section per step, and the key `order`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

ORDER = "order"
ORDERED = ("augmentation",)  # the sections of a run's config that have ordered steps


def names_in_order(section: Mapping[str, Any]) -> list[str]:
    """Return the names of the steps that are not null, in the sequence of `order`; if it is null, as in the section."""
    present = [str(name) for name, step in section.items() if name != ORDER and step is not None]
    order = section.get(ORDER)
    return present if order is None else [name for name in order if name in present]


def with_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's config with `order` filled in: comparisons of configs ignore the order of keys."""
    sections = {path: config[path] for path in ORDERED if isinstance(config.get(path), Mapping)}
    ordered = {path: {**section, ORDER: names_in_order(section)} for path, section in sections.items()}
    return {**config, **ordered}


def order_problem(path: str, section: Mapping[str, Any]) -> str | None:
    """Return what is wrong with `order`, which must name each step that is not null once; None if it is valid."""
    order: Sequence[str] | None = section.get(ORDER)
    if order is None:
        return None
    known = [str(name) for name in section if name != ORDER]
    problems = []
    for name in dict.fromkeys(order):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected {' | '.join(known) or 'none'}"
        problems += [] if name in known else [f"{name} is no step; {hint}"]
        problems += [f"{name} stands twice"] if list(order).count(name) > 1 else []
    missing = [name for name in known if section[name] is not None and name not in order]
    problems += [f"lacks {', '.join(missing)} (a step that is null may be left out)"] if missing else []
    return f"{path}.{ORDER}: {'; '.join(problems)}" if problems else None
