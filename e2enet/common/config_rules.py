"""Rules for config values: each tests one value and says in words what it accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ENGINES = ("auto", "dense", "sparse", "fused")  # what may run a network: e2enet/network/engine/select.py


@dataclass(frozen=True)
class Rule:
    """A test of one value, and a description of the accepted values."""

    accepts: Callable[[Any], bool]
    expected: str


def whole(low: int, high: int | None = None) -> Rule:
    """Whole numbers from `low` to `high`."""
    words = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(lambda v: is_whole(v) and v >= low and (high is None or v <= high), words)


def number(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """Finite numbers from `low` (excluded with `above`) to `high`."""
    if high == math.inf:
        words = f"a number {'>' if above else '>='} {low:g}"
    else:
        words = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    return Rule(lambda v: is_number(v) and (v > low if above else v >= low) and v <= high, words)


def choice(*values: Any) -> Rule:
    """One of the given values; true and 1 are different values."""
    words = " | ".join(_spell(value) for value in values)
    return Rule(lambda v: any(v == value and type(v) is type(value) for value in values), words)


def optional(rule: Rule) -> Rule:
    """Null, or a value that `rule` accepts."""
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


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; a boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a boolean is not."""
    # Compare, since math.isfinite raises for whole numbers too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


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
    lambda v: isinstance(v, list) and all(is_whole(a) and 0 <= a <= 2 for a in v) and len(set(v)) == len(v),
    "a list of different axes out of 0 (depth), 1, 2",
)
voxels = list_of(whole(1), 3)
